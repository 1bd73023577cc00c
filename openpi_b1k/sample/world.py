"""The sample world: a table, a red and a blue button, and the R1 Pro's two grippers above it.

The prompt names a button and a gripper. The named gripper has to press the named button: to be closed on it and about
at rest. Pressing the other button, or with the other gripper, ends the episode as a failure. Where the buttons are is
seen by the cameras and told by nothing else.

    y +0.36 +--------------------+     The first two joints of an arm move its gripper over the table, as a gantry
            |   o red            |     would: x (right) = METRES_PER_RAD[0] * (joint 0 - ARM_CENTRE[0]),
            |        <left>      |     y (away) = METRES_PER_RAD[1] * (joint 1 - ARM_CENTRE[1]).
            |  <right>    o blue |     Joints follow their commands at a limited speed, fingers close within three
      -0.36 +--------------------+     steps.
          -0.36                x +0.36 m
"""

import dataclasses

import numpy as np

from openpi_b1k.robots.layout import Layout
from openpi_b1k.robots.r1pro import ACTION

HANDS = ("left", "right")
BUTTONS = ("red", "blue")
FPS = 30

TOLERANCE = 0.05
"""Distance in m from a button within which a closed gripper at rest presses it."""
HALF_RANGE = 0.31
"""Buttons lie in [-HALF_RANGE, HALF_RANGE] m along both axes: 12.4 tolerances."""
BUTTON_GAP = 0.14
"""Least distance between the buttons, in m."""
MAX_STEPS = 75
"""Environment steps before an episode fails; the expert needs at most 45."""

ARM_CENTRE = {"left": (-0.5, 1.2), "right": (-0.5, -1.2)}  # rad; of joints 0 and 1, where the gripper is at (0, 0)
METRES_PER_RAD = {"left": (0.4, 0.4), "right": (0.4, -0.4)}
ARM_REST = (0.0, 0.0, 0.0, -1.0, 0.2, 0.3, 0.1)  # rad; joints 0 and 1 are free, the others stay here
TORSO_REST = (1.025, -1.45, -0.47, 0.0)
IDLE_POSITION = {"left": (-0.28, -0.3), "right": (0.28, -0.3)}
JOINT_SPEED = 0.06  # rad per environment step
PRESS_SPEED = 0.5 * JOINT_SPEED
"""A closed gripper presses only when it is about at rest, so that waving grippers about does not find a button."""
FINGER_SPEED = 0.02  # m per environment step
FINGER_OPEN = 0.05
FINGER_CLOSED = 0.012


@dataclasses.dataclass(frozen=True)
class Goal:
    """One of the world's tasks."""

    task_index: int
    button: str
    hand: str

    @property
    def task_name(self) -> str:
        """The task as B1K names tasks."""
        return f"press_{self.button}_button_with_{self.hand}_gripper"

    @property
    def prompt(self) -> str:
        """The task as a sentence."""
        return f"Press the {self.button} button with the {self.hand} gripper."


GOALS = tuple(Goal(2 * i + j, button, hand) for i, button in enumerate(BUTTONS) for j, hand in enumerate(HANDS))


class World:
    """One episode. The same seed and goal give the same layout, and the same actions the same course."""

    def __init__(self, goal: Goal, seed: tuple[int, ...]):
        """Draws a layout: buttons, gripper positions, light.

        Args:
            goal: what has to be pressed with what.
            seed: entropy of the layout; the goal's index is mixed in.
        """
        rng = np.random.default_rng((*seed, goal.task_index))
        self.goal = goal
        self.buttons: dict[str, np.ndarray] = dict(zip(BUTTONS, draw_buttons(rng), strict=True))
        self.light = rng.uniform(0.85, 1.05)
        self.arms: dict[str, np.ndarray] = {hand: np.array(ARM_REST) for hand in HANDS}
        for hand in HANDS:
            self.arms[hand][:2] = arm_joints(hand, rng.uniform(-HALF_RANGE, HALF_RANGE, size=2))
        self.fingers: dict[str, float] = dict.fromkeys(HANDS, FINGER_OPEN)
        self.velocity: dict[str, np.ndarray] = {hand: np.zeros(7) for hand in HANDS}
        self.num_steps = 0
        self.pressed: tuple[str, str] | None = None

    @property
    def is_success(self) -> bool:
        """Whether the goal's gripper has pressed the goal's button, and nothing was pressed before."""
        return self.pressed == (self.goal.button, self.goal.hand)

    @property
    def is_over(self) -> bool:
        """Whether something was pressed or time is up."""
        return self.pressed is not None or self.num_steps >= MAX_STEPS

    def hand_position(self, hand: str) -> np.ndarray:
        """Returns (x, y) of a gripper on the table, in m."""
        return (self.arms[hand][:2] - ARM_CENTRE[hand]) * METRES_PER_RAD[hand]

    def step(self, action: np.ndarray) -> None:
        """Moves the robot for one environment step of 1/30 s.

        Args:
            action: float [23], see `robots/r1pro.py`; base and torso commands are ignored here.
        """
        for hand in HANDS:
            command = np.array(ARM_REST)
            command[:2] = action[ACTION.slice(f"{hand}_arm")][:2]
            delta = np.clip(command - self.arms[hand], -JOINT_SPEED, JOINT_SPEED)
            self.arms[hand] = self.arms[hand] + delta
            self.velocity[hand] = delta * FPS
            target = FINGER_OPEN if action[ACTION.slice(f"{hand}_gripper")][0] > 0 else 0.0
            self.fingers[hand] += float(np.clip(target - self.fingers[hand], -FINGER_SPEED, FINGER_SPEED))
            is_settled = np.abs(delta).max() <= PRESS_SPEED
            if is_settled and self.fingers[hand] <= FINGER_CLOSED and self.pressed is None:
                self.pressed = self.button_under(hand)
        self.num_steps += 1

    def button_under(self, hand: str) -> tuple[str, str] | None:
        """Returns (button, hand) if a button lies within the tolerance of this gripper."""
        for name, position in self.buttons.items():
            if np.linalg.norm(self.hand_position(hand) - position) <= TOLERANCE:
                return name, hand
        return None

    def proprio(self, layout: Layout) -> np.ndarray:
        """Returns the robot's raw vector, float32, in the order of either generation's `layout`."""
        vector = np.zeros(layout.size, np.float32)
        for name, value in self.proprio_fields().items():
            if name in layout.names:
                vector[layout.slice(name)] = value
        return vector

    def proprio_fields(self) -> dict[str, np.ndarray]:
        """Returns the proprio fields this world knows, by the names of `robots/r1pro.py`; the others are zero."""
        qpos = np.zeros(28)
        qpos[6:10] = TORSO_REST
        fields = {"trunk_qpos": np.array(TORSO_REST), "joint_qpos": qpos}
        for i, hand in enumerate(HANDS):
            arm, finger = self.arms[hand], self.fingers[hand]
            qpos[10 + i : 24 : 2] = arm
            qpos[24 + 2 * i : 26 + 2 * i] = finger
            fields |= {
                f"arm_{hand}_qpos": arm,
                f"arm_{hand}_qpos_sin": np.sin(arm),
                f"arm_{hand}_qpos_cos": np.cos(arm),
                f"arm_{hand}_qvel": self.velocity[hand],
                f"gripper_{hand}_qpos": np.full(2, finger),
                f"eef_{hand}_pos": np.array([0.5, *self.hand_position(hand)]),
                f"eef_{hand}_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            }
        return fields | {"joint_qpos_sin": np.sin(qpos), "joint_qpos_cos": np.cos(qpos)}


def arm_joints(hand: str, position: np.ndarray) -> np.ndarray:
    """Returns joints 0 and 1 in rad that put a gripper at `position` (x, y) in m."""
    return np.asarray(position) / METRES_PER_RAD[hand] + ARM_CENTRE[hand]


def draw_buttons(rng: np.random.Generator) -> np.ndarray:
    """Returns (x, y) of both buttons in m, [2, 2], at least BUTTON_GAP apart."""
    while True:
        positions = rng.uniform(-HALF_RANGE, HALF_RANGE, size=(2, 2))
        if np.linalg.norm(positions[0] - positions[1]) >= BUTTON_GAP:
            return positions


class Expert:
    """The scripted demonstrator: go to the button, settle, close the gripper, hold."""

    SETTLE_STEPS = 2

    def __init__(self, world: World):
        """Looks up the button's place, which the policy has to see."""
        self.world = world
        self.steps_at_button = 0

    def action(self) -> np.ndarray:
        """Returns the command for the present step, float32 [23]."""
        goal = self.world.goal
        target = arm_joints(goal.hand, self.world.buttons[goal.button])
        is_there = np.abs(self.world.arms[goal.hand][:2] - target).max() < 1e-6
        self.steps_at_button = self.steps_at_button + 1 if is_there else 0
        action = np.zeros(ACTION.size, np.float32)
        action[ACTION.slice("torso")] = TORSO_REST
        for hand in HANDS:
            arm = np.array(ARM_REST)
            arm[:2] = target if hand == goal.hand else arm_joints(hand, np.array(IDLE_POSITION[hand]))
            action[ACTION.slice(f"{hand}_arm")] = arm
            is_closing = hand == goal.hand and self.steps_at_button > self.SETTLE_STEPS
            action[ACTION.slice(f"{hand}_gripper")] = -1.0 if is_closing else 1.0
        return action
