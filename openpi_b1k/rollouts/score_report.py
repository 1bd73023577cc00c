"""What there is to say about the rollouts of one policy, as text: how each task went, failures, official scores."""

import collections
import math
from collections.abc import Sequence

from openpi_b1k.config.data import Generation
from openpi_b1k.rollouts import intervals, scores
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.rollouts.scores import Scores

ALL = "all of these"


def text(rollouts: Sequence[Rollout], official: Scores, *, generation: Generation, confidence: float = 0.95) -> str:
    """Returns the whole report.

    Raises:
        ValueError: see `table`.
    """
    return "\n\n".join(
        (table(rollouts, confidence), _failures(rollouts), _official(rollouts, official, generation=generation))
    )


def table(rollouts: Sequence[Rollout], confidence: float = 0.95) -> str:
    """Returns a line for each task that was played, with intervals; nothing is assumed of what was not.

    Success is a q-score of 1, as in the official scores. The last line is about all rollouts as one sample. Instances
    differ more between tasks than within one, so with the same number of each its interval is rather too wide.

    Raises:
        ValueError: a rollout is there twice, or there is none.
    """
    of_task = scores.by_task(rollouts)
    if not of_task:
        raise ValueError("no rollouts, so there is nothing to tell about them")
    width = max(len(ALL), *map(len, of_task))
    share = f"{confidence:.0%}"
    lines = [f"{'task':{width}}  rollouts  given up  {f'success ({share})':20}  q-score ({share})"]
    for task, played in [*of_task.items(), (ALL, [one for many in of_task.values() for one in many])]:
        n = len(played)
        q_scores = [one.q_score for one in played]
        successes = sum(q_score == 1 for q_score in q_scores)
        success = _with_interval(successes / n, intervals.wilson(successes, n, confidence))
        q_score = _with_interval(math.fsum(q_scores) / n, intervals.mean_interval(q_scores, confidence))
        given_up = sum(one.failure_reason is not None for one in played)
        lines.append(f"{task:{width}}  {n:8}  {given_up:8}  {success:20}  {q_score}")
    return "\n".join(lines)


def failures(rollouts: Sequence[Rollout]) -> dict[str, list[str]]:
    """Returns the names of rollouts the evaluator gave up, by its reason, most frequent first."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for rollout in rollouts:
        if rollout.failure_reason is not None:
            found[rollout.failure_reason].append(rollout.stem)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _failures(rollouts: Sequence[Rollout]) -> str:
    kinds = failures(rollouts)
    if not kinds:
        return "the evaluator gave no rollout up"
    lines = ["given up by the evaluator, each counts 0:"]
    lines += [f"  {reason}, {len(names)}: {' '.join(names)}" for reason, names in kinds.items()]
    return "\n".join(lines)


def _official(rollouts: Sequence[Rollout], official: Scores, *, generation: Generation) -> str:
    """Returns the official scores and what they were divided by."""
    asked = len(official.per_task) * official.instances
    divided = f"{len(official.per_task)} tasks x {official.instances} rollouts"
    lines = [
        f"official scores of {generation}, {divided}; the {asked - len(rollouts)} that were not played count 0:",
        *(f"  {name:20}  {official.overall[name]:.4f}" for name in scores.SCORES),
    ]
    if generation == "2026":
        other = "the rules ask for 10" if official.instances == 20 else "the shipped scorer divides by 20"
        lines.append(f"  ({other} rollouts of a task: --instances-per-task)")
    return "\n".join(lines)


def _with_interval(estimate: float, interval: intervals.Interval) -> str:
    return f"{estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
