"""How an episode of the sample world scores by the challenge's rules: q-score, distances, and what humans would need.

A goal has two literals: the named gripper is at the named button, and it has pressed that button before anything else
was pressed. The scripted expert stands for the humans whose demonstrations the official metrics divide by.
Source of the rules: BEHAVIOR-1K, OmniGibson's `metrics/task_metric.py` and `metrics/agent_metric.py`.
"""

import dataclasses
import functools

import numpy as np

from openpi_b1k.sample.recording import demo_world
from openpi_b1k.sample.world import HANDS, TOLERANCE, Expert, Goal, World

NUM_HUMAN = 50
"""The expert's episodes that the means are over."""
PARTS = ("base", *HANDS)
"""Whose way is measured; the base never moves here."""


class Scores:
    """Keeps score of one episode."""

    def __init__(self, world: World) -> None:
        """Notes how the episode starts; no step may have been taken."""
        self._world = world
        self._at_start = literals(world)
        self._positions = {hand: world.hand_position(hand) for hand in HANDS}
        self.distance: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        """How far each part has moved, m."""

    def update(self) -> None:
        """Takes one environment step into account."""
        for hand in HANDS:
            position = self._world.hand_position(hand)
            self.distance[hand] += float(np.linalg.norm(position - self._positions[hand]))
            self._positions[hand] = position

    @property
    def q_score(self) -> float:
        """1 on success, else the share of the goal's literals that were false at the start and are true now."""
        if self._world.is_success:
            return 1.0
        gained = [now and not before for now, before in zip(literals(self._world), self._at_start, strict=True)]
        return sum(gained) / len(gained)


@dataclasses.dataclass(frozen=True)
class HumanMeans:
    """What the expert needs on average."""

    steps: float
    """Environment steps until the button is pressed."""
    distance: dict[str, float]
    """Of each part, m."""


def literals(world: World) -> tuple[bool, bool]:
    """Returns which of the goal's literals hold now: gripper at button, button pressed by gripper."""
    goal = world.goal
    distance = np.linalg.norm(world.hand_position(goal.hand) - world.buttons[goal.button])
    return bool(distance <= TOLERANCE), world.is_success


@functools.cache
def human_means(goal: Goal) -> HumanMeans:
    """Returns the expert's means over the demonstrations of a goal."""
    steps, distances = [], []
    for instance in range(1, NUM_HUMAN + 1):
        world = demo_world(goal, instance)
        expert, scores = Expert(world), Scores(world)
        while not world.is_over:
            world.step(expert.action())
            scores.update()
        steps.append(world.num_steps)
        distances.append(scores.distance)
    return HumanMeans(float(np.mean(steps)), {part: float(np.mean([one[part] for one in distances])) for part in PARTS})
