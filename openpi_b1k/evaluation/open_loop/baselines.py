"""What actions one can name without a network. A policy that is no nearer to the demonstrations has learned nothing."""

import dataclasses

import numpy as np

from openpi_b1k.robots.chunk_errors import is_gripper
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.actions import AbsoluteActions
from openpi_b1k.transforms.normalize import NormStats

EXPLAINED = {
    "hold still": "joints stay where they are, base velocities are 0, and grippers keep their last command; at an "
    "episode's frame 0, which has none, they are open",
    "repeat last": "the demonstrated action of the frame before, which the policy is not shown, at every step; at an "
    "episode's frame 0, hold still",
    "mean action": "the training data's mean action (the checkpoint's norm stats); fields that are predicted as deltas "
    "are the joints' positions plus the mean delta",
}
"""Name of each baseline -> what it is, exactly."""
OPEN = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Baselines:
    """Chunks to compare a policy's with."""

    robot: Robot
    """With the state layout of the policy."""
    norm_stats: NormStats
    """Of the checkpoint."""
    delta_fields: tuple[str, ...]
    action_horizon: int

    def chunks(self, state: np.ndarray, last_action: np.ndarray | None) -> np.ndarray:
        """Returns the chunk of each baseline, float64 [3, ah, a] in the order of EXPLAINED, in the robot's units.

        Args:
            state: of the chunk's first step, [s], in the state's units.
            last_action: demonstrated one step before, [a]; None where there is none.
        """
        still = self._hold_still(state, last_action)
        repeated = still if last_action is None else last_action
        shape = (self.action_horizon, self.robot.action.size)
        mean = np.broadcast_to(self.norm_stats.for_robot(self.robot).actions.mean, shape)
        absolute = AbsoluteActions(self.delta_fields, self.robot)({"actions": mean, "state": state})["actions"]
        return np.stack([np.broadcast_to(still, shape), np.broadcast_to(repeated, shape), absolute])

    def _hold_still(self, state: np.ndarray, last_action: np.ndarray | None) -> np.ndarray:
        action = np.zeros(self.robot.action.size)
        for field in self.robot.action.fields:
            entries = self.robot.action.slice(field.name)
            if is_gripper(field.name):
                action[entries] = OPEN if last_action is None else last_action[entries]
            elif field.unit == "rad":  # a position; the base is given velocities
                action[entries] = state[self.robot.state.slice(field.name)]
        return action
