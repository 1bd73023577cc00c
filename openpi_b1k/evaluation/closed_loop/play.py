"""The evaluator's loop over a group of environments: who is asked when, what it may take, and why it is given up.

Every environment's account is charged with the time in which the policy was waited for, and with its share of the time
that the environments took, up to a second for each of its steps. One that is over keeps sending its last observation.
Source: BEHAVIOR-1K, OmniGibson/omnigibson/eval/evaluator.py, and the challenge's documentation of 2026-10-09.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from openpi_b1k.evaluation.closed_loop.environments import Environment
from openpi_b1k.serving.client import ConnectionLostError, PolicyError, QueryTimeoutError

logger = logging.getLogger(__name__)

REASONS = {
    ConnectionLostError: "policy_connection_lost",
    QueryTimeoutError: "policy_query_timeout",
    PolicyError: "policy_error",
}
"""What the evaluator calls a client's errors."""
OUT_OF_TIME = "group_time_budget_exceeded"


class Player(Protocol):
    """Who acts in all environments of a group."""

    @property
    def needs_observations(self) -> bool:
        """Whether the next actions depend on observations; false while a reply's chunk is replayed."""
        ...

    def reset(self, num_environments: int) -> None:
        """Begins new episodes in a group of environments.

        Raises:
            ConnectionLostError: there is nobody to ask.
        """
        ...

    def act(self, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns the next actions, float32 [n, 23]; `observations` may be empty if they are not needed.

        Raises:
            ConnectionLostError: there is nobody to ask any more.
            QueryTimeoutError: the answer took too long.
            PolicyError: the answer is an error, or no actions.
        """
        ...


class Witness(Protocol):
    """Sees each step of one environment."""

    def add(self, observation: dict[str, Any], action: np.ndarray) -> None:
        """Takes what was seen, and the action executed then."""
        ...


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a rollout may take."""

    seconds_per_step: float = 1.0
    """Times an environment's most steps."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""


def play(
    environments: Sequence[Environment],
    player: Player,
    witnesses: Sequence[Witness | None],
    budget: Budget | None = None,
) -> list[str | None]:
    """Plays a group to its end and returns why each environment was given up, or None where it was not.

    An error of the policy fails all environments that are not over: they share its connection.

    Args:
        environments: at their start.
        player: who acts in them.
        witnesses: who sees each of them, or None.
        budget: the evaluator's by default.
    """
    budget = budget or Budget()
    spent = np.zeros(len(environments))
    failures: list[str | None] = [None] * len(environments)

    def playing() -> list[int]:
        return [i for i, one in enumerate(environments) if failures[i] is None and not one.is_over]

    try:
        start = budget.clock()
        player.reset(len(environments))
        spent += budget.clock() - start
        while active := playing():
            start = budget.clock()
            is_seen = player.needs_observations or any(witnesses[i] is not None for i in active)
            observations = [one.observation() for one in environments] if is_seen else []
            asked = budget.clock()
            actions = player.act(observations)
            answered = budget.clock()
            for i in active:
                witness = witnesses[i]
                if witness is not None:
                    witness.add(observations[i], actions[i])
                environments[i].step(actions[i])
            policy_s, world_s = answered - asked, budget.clock() - answered + asked - start
            spent[active] += policy_s + world_s / len(active)
            for i in playing():
                if spent[i] > environments[i].max_steps * budget.seconds_per_step:
                    failures[i] = OUT_OF_TIME
    except tuple(REASONS) as error:
        reason = REASONS[type(error)]
        logger.warning("%s: %d of %d rollouts are given up: %s", reason, len(playing()), len(environments), error)
        for i in playing():
            failures[i] = reason
    return failures
