"""Plays a checkpoint in the sample world, as the simulator's evaluator would play it, and says how often it succeeds.

The ablations are the controls: with another goal's prompt, blanked images (and depth), random weights, or the mean
demonstration replayed open loop, success has to vanish: else the world could be solved without seeing, reading or
learning.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from openpi_b1k.checkpoints.params import WeightsKind
from openpi_b1k.models.pi0 import Model
from openpi_b1k.sample.environment import SampleEnvironment, mean_demonstration
from openpi_b1k.sample.world import GOALS, MAX_STEPS
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.policy import Policy, dense
from openpi_b1k.serving.requests import raw_sample

Ablation = Literal["none", "prompt", "images", "weights", "demonstration"]


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of some episodes."""

    checkpoint: str
    seed: int
    ablate: Ablation
    outcomes: tuple[dict[str, Any], ...]
    """Per episode: its task, whether it succeeded, its environment steps, and the (button, gripper) pressed or None."""

    @property
    def num_successes(self) -> int:
        """Episodes that succeeded."""
        return sum(outcome["success"] for outcome in self.outcomes)

    @property
    def success_rate(self) -> float:
        """Successes per episode, in [0, 1]."""
        return self.num_successes / len(self.outcomes)

    def summary(self) -> str:
        """Returns the line that `scripts/train.py` ends with."""
        return f"closed-loop success {self.success_rate:.2f} ({self.num_successes} of {len(self.outcomes)})"

    def to_json(self) -> str:
        """Returns everything as JSON text."""
        rates = {"success_rate": self.success_rate, "successes": self.num_successes, "episodes": len(self.outcomes)}
        return json.dumps(rates | dataclasses.asdict(self), indent=2) + "\n"


def evaluate(
    checkpoint: pathlib.Path | str,
    *,
    episodes: int,
    seed: int = 0,
    ablate: Ablation = "none",
    execution_horizon: int | None = None,
    weights_kind: WeightsKind = "ema",
) -> Result:
    """Plays `episodes` unseen layouts, all at once.

    Args:
        checkpoint: directory of a run on the sample world.
        episodes: layouts; the four goals take turns.
        seed: of layouts and sampling noise.
        ablate: what to take away from the policy.
        execution_horizon: actions executed per chunk; default: all that were predicted.
        weights_kind: as for `load_params`.

    Raises:
        ValueError: the checkpoint was not trained on the sample world, or a number is out of range.
    """
    policy = jax_backend.load(checkpoint, seed, weights_kind)
    if policy.config.data.source != "sample":
        raise ValueError(
            f"{checkpoint} was trained on data source {policy.config.data.source!r}; the sample world can only play "
            "checkpoints of the sample recipes"
        )
    horizon = policy.config.model.action_horizon
    execution_horizon = horizon if execution_horizon is None else execution_horizon
    if episodes < 1 or not 1 <= execution_horizon <= horizon:
        raise ValueError(
            f"episodes must be at least 1 and execution_horizon in [1, {horizon}]; got {episodes} and "
            f"{execution_horizon}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, or layouts of the demonstrations could come up; got {seed}")
    untrained = [goal.task_name for goal in GOALS if goal.task_name not in policy.prompts]
    if untrained:
        raise ValueError(
            f"{checkpoint} was not trained on {', '.join(untrained)}; all tasks of the sample world are played"
        )
    if ablate == "weights":
        model = dense(policy.config.model)
        random = jax.jit(Model(model).init_params)(jax.random.key(seed))
        policy.backend = jax_backend.JaxBackend(model, random, seed)
    environments = [SampleEnvironment(policy.config.data.generation, seed, episode) for episode in range(episodes)]
    play(environments, chunk_source(policy, ablate), execution_horizon)
    outcomes = tuple(
        {
            "task": environment.goal.task_name,
            "success": environment.world.is_success,
            "steps": environment.world.num_steps,
            "pressed": environment.world.pressed,
        }
        for environment in environments
    )
    return Result(str(checkpoint), seed, ablate, outcomes)


def play(
    environments: list[SampleEnvironment],
    next_chunks: Callable[[list[SampleEnvironment], int], np.ndarray],
    execution_horizon: int,
) -> None:
    """Runs all environments to their end in lockstep; finished ones keep sending their last observation."""
    for start in range(0, MAX_STEPS, execution_horizon):
        if all(environment.world.is_over for environment in environments):
            return
        chunks = next_chunks(environments, start)
        for step in range(execution_horizon):
            for environment, chunk in zip(environments, chunks, strict=True):
                environment.step(chunk[step])


def chunk_source(policy: Policy, ablate: Ablation) -> Callable[[list[SampleEnvironment], int], np.ndarray]:
    """Returns a function from (environments, step) to their next chunks, float32 [n, action horizon, 23]."""
    horizon = policy.config.model.action_horizon
    if ablate == "demonstration":
        demonstration = mean_demonstration(policy.config.data.sample_demos, MAX_STEPS + horizon)
        return lambda environments, start: np.stack([demonstration[start : start + horizon]] * len(environments))

    def infer(environments: list[SampleEnvironment], start: int) -> np.ndarray:
        del start
        return policy.infer([ablated_sample(policy, environment, ablate) for environment in environments])

    return infer


def ablated_sample(policy: Policy, environment: SampleEnvironment, ablate: Ablation) -> dict[str, Any]:
    """Returns an environment's raw sample, with the prompt of another goal or with black images if asked."""
    goal = environment.goal
    if ablate == "prompt":
        goal = GOALS[(goal.task_index + 1) % len(GOALS)]
    sample = raw_sample(environment.observation(), policy.robot, policy.config.data, policy.prompts[goal.task_name])
    if ablate == "images":
        seen = {name: sample[name] for name in ("images", "depth") if name in sample}
        sample |= jax.tree.map(np.zeros_like, seen)
    return sample
