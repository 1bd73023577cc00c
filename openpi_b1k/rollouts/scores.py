"""Scores of rollouts as the challenge counts them, what can be said about them, and how two policies compare.

Source: BEHAVIOR-1K, OmniGibson/omnigibson/{learning,eval}/utils/score_utils.py.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from openpi_b1k.rollouts import intervals
from openpi_b1k.rollouts.intervals import PairedDifference
from openpi_b1k.rollouts.results import PARTS, TIMEOUT_MULTIPLIER, Rollout

SCORES = ("q_score", "task_sr", "time_score", *(f"{part}_distance_score" for part in PARTS))
"""By the names of the official score file."""
INSTANCES = {"2025": 10, "2026": 20}
"""Per task, which the shipped scorer divides by. The rules of 2026 ask for 10; its scorer counts the other 10 as 0."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Official scores, by SCORES' names. What was not played counts 0."""

    overall: Mapping[str, float]
    per_task: Mapping[str, Mapping[str, float]]
    """Of every task, played or not."""
    instances: int
    """Rollouts a task's sums were divided by."""

    def to_json(self) -> str:
        """Returns the scores as the official score file holds them, without the names of team and date."""
        per_task = {name: {task: scores[name] for task, scores in self.per_task.items()} for name in SCORES}
        facts = {"overall_scores": self.overall, "per_task_scores": per_task, "instances_per_task": self.instances}
        return json.dumps(facts, indent=4) + "\n"


def of_rollout(rollout: Rollout, generation: str) -> dict[str, float]:
    """Returns the official scores of one rollout, by SCORES' names.

    The time score is 1 for the human mean length and 0 at the time limit. A distance score is the human mean over the
    way moved: more than 1 for less than that, infinite for a robot that did not move.
    """
    limit = TIMEOUT_MULTIPLIER[generation]
    return {
        "q_score": rollout.q_score,
        "task_sr": float(rollout.q_score == 1),
        "time_score": (limit - 1 / rollout.normalized_time) / (limit - 1),
        **{f"{part}_distance_score": rollout.normalized_agent_distance[part] for part in PARTS},
    }


def official(
    rollouts: Sequence[Rollout], *, generation: str, tasks: Sequence[str], instances: int | None = None
) -> Scores:
    """Returns the challenge's scores: means over `instances` rollouts of each task, and over all tasks.

    Args:
        rollouts: those played, each once.
        generation: "2025" or "2026".
        tasks: all of the challenge, played or not.
        instances: per task; default: as the shipped scorer has it, see INSTANCES.

    Raises:
        ValueError: a rollout is there twice, of another task, or one of more than `instances` of its task.
    """
    count = INSTANCES[generation] if instances is None else instances
    of_task = by_task(rollouts)
    if unknown := sorted(of_task.keys() - set(tasks)):
        raise ValueError(f"the challenge of {generation} has no task {unknown}")
    for task, played in of_task.items():
        if len(played) > count:
            raise ValueError(f"{task} has {len(played)} rollouts, more than the {count} its scores are divided by")
    per_task = {}
    for task in tasks:
        found = [of_rollout(rollout, generation) for rollout in of_task.get(task, ())]
        per_task[task] = {name: math.fsum(scores[name] for scores in found) / count for name in SCORES}
    overall = {name: math.fsum(scores[name] for scores in per_task.values()) / len(tasks) for name in SCORES}
    return Scores(overall, per_task, count)


def by_task(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Returns the rollouts of each task that has any, by its name.

    Raises:
        ValueError: a rollout is there twice.
    """
    of_task: dict[str, list[Rollout]] = collections.defaultdict(list)
    for rollout in keyed(rollouts).values():
        of_task[rollout.task].append(rollout)
    return dict(of_task)


def keyed(rollouts: Sequence[Rollout]) -> dict[tuple[str, int, int], Rollout]:
    """Returns the rollouts by task, instance and rollout, in this order.

    Raises:
        ValueError: a rollout is there twice.
    """
    found = {rollout.key: rollout for rollout in sorted(rollouts, key=lambda one: one.key)}
    if len(found) < len(rollouts):
        counts = collections.Counter(rollout.stem for rollout in rollouts)
        twice = [stem for stem, count in counts.items() if count > 1]
        raise ValueError(f"{len(twice)} rollouts are there more than once, the first is {twice[0]}")
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one policy did against another on the rollouts that both played."""

    q_score: PairedDifference
    success: PairedDifference
    missing_there: int
    """Rollouts only the one played."""
    missing_here: int
    """Rollouts only the other played."""
    pairs_needed: int | None
    """About how many pairs like these would tell the mean q-scores apart; None where they are equal."""

    def summary(self) -> str:
        """Returns two lines and a sentence: the differences, and which is better or that it cannot be told."""
        lines = [
            f"{name} {found.mean:+.3f} {_ends(found.low, found.high, '+.3f')}"
            for name, found in (("q-score", self.q_score), ("success", self.success))
        ]
        pairs = f"{self.q_score.n} paired rollouts"
        if missing := [
            f"{count} have no partner {where}"
            for count, where in ((self.missing_there, "among the others"), (self.missing_here, "among these"))
            if count
        ]:
            pairs += f" ({', '.join(missing)} and are left out)"
        if self.q_score.is_clear:
            verdict = f"these are {'better' if self.q_score.mean > 0 else 'worse'} than the others, by {pairs}"
        elif self.pairs_needed is None:
            verdict = f"which is better cannot be told: no difference in the mean of {pairs}"
        else:
            verdict = (
                f"which is better cannot be told by {pairs}; a difference like this needs about {self.pairs_needed}"
            )
        return "\n".join((*lines, verdict))


def compare(rollouts: Sequence[Rollout], others: Sequence[Rollout], confidence: float = 0.95) -> Comparison:
    """Returns how `rollouts` did against `others`, pair by pair on the same task, instance and rollout.

    Raises:
        ValueError: a rollout is there twice, or none is in both.
    """
    here, there = keyed(rollouts), keyed(others)
    both = sorted(here.keys() & there.keys())
    if not both:
        raise ValueError(
            f"none of {len(here)} and {len(there)} rollouts is of the same task, instance and rollout; "
            f"play both policies on the same instances"
        )
    q_scores = [here[key].q_score - there[key].q_score for key in both]
    successes = [float(here[key].q_score == 1) - float(there[key].q_score == 1) for key in both]
    return Comparison(
        q_score=intervals.paired(q_scores, confidence),
        success=intervals.paired(successes, confidence),
        missing_there=len(here) - len(both),
        missing_here=len(there) - len(both),
        pairs_needed=intervals.pairs_needed(q_scores, confidence),
    )


def _ends(low: float, high: float, form: str) -> str:
    return f"[{low:{form}}, {high:{form}}]"
