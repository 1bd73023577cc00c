"""What the evaluator's client plays in: the sample world's episodes behind one interface, and how each went."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from openpi_b1k.config.data import Generation
from openpi_b1k.rollouts import results
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.sample.scoring import human_means
from openpi_b1k.sample.world import FPS, MAX_STEPS

EPISODES_PER_SEED = 10_000
"""Instances are numbered seed * EPISODES_PER_SEED + episode, so that the same number is the same layout."""


class Environment(Protocol):
    """One episode of a task."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def prompt(self) -> str:
        """The task as a sentence."""
        ...

    @property
    def max_steps(self) -> int:
        """Environment steps allowed."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end; actions change nothing any more."""
        ...

    def observation(self) -> dict[str, np.ndarray]:
        """Returns what is seen now, under the evaluator's keys, unbatched; after the end, the last one."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Executes one action, float32 [23]."""
        ...


class SampleEpisode:
    """An unseen episode of the sample world that can tell how it went."""

    def __init__(self, generation: Generation, seed: int, episode: int) -> None:
        """Lays it out.

        Args:
            generation: of the proprio.
            seed: of layouts.
            episode: of the seed's; the goals take turns.
        """
        self.environment = SampleEnvironment(generation, seed, episode)
        self.instance_id = seed * EPISODES_PER_SEED + episode
        self.max_steps = MAX_STEPS
        self._seen: tuple[int, dict[str, np.ndarray]] | None = None

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.environment.goal.task_name

    @property
    def prompt(self) -> str:
        """The task as a sentence."""
        return self.environment.goal.prompt

    @property
    def stem(self) -> str:
        """The name of the rollout's files, without suffix."""
        return f"{self.task}_{self.instance_id}_0"

    @property
    def is_over(self) -> bool:
        """Whether something was pressed or time is up."""
        return self.environment.world.is_over

    @property
    def pressed(self) -> tuple[str, str] | None:
        """The (button, gripper) pressed."""
        return self.environment.world.pressed

    def observation(self) -> dict[str, np.ndarray]:
        """Returns what is seen now; drawn once per step."""
        step = self.environment.world.num_steps
        if self._seen is None or self._seen[0] != step:
            self._seen = (step, self.environment.observation())
        return self._seen[1]

    def step(self, action: np.ndarray) -> None:
        """Executes one action, float32 [23]."""
        self.environment.step(action)

    def rollout(self, failure_reason: str | None = None) -> Rollout:
        """Returns how it went; with a reason, that it could not be played to its end."""
        world, scores = self.environment.world, self.environment.scores
        if failure_reason is not None:
            return results.failed(self.task, self.instance_id, 0, failure_reason, world.num_steps)
        humans = human_means(self.environment.goal)
        return Rollout(
            task=self.task,
            instance_id=self.instance_id,
            rollout_id=0,
            steps=world.num_steps,
            success=world.is_success,
            q_score=scores.q_score,
            agent_distance=scores.distance,
            normalized_agent_distance={
                part: humans.distance[part] / moved if moved > 0 else float("inf")
                for part, moved in scores.distance.items()
            },
            simulator_steps=world.num_steps,
            simulator_time=world.num_steps / FPS,
            normalized_time=humans.steps / world.num_steps,
        )


def stacked(observations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns observations as the evaluator of 2026 sends them: arrays with the environments in front, texts listed."""
    return {
        key: np.stack([one[key] for one in observations])
        if isinstance(value, np.ndarray)
        else [one[key] for one in observations]
        for key, value in observations[0].items()
    }
