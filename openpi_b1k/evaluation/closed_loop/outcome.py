"""How a policy did in the closed loop: every rollout, intervals, the time it took, and a comparison."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from openpi_b1k.rollouts import intervals, score_report, scores
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.rollouts.scores import Comparison


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of some episodes. Two are equal if all rollouts went equally, however long they took."""

    policy: str
    """The checkpoint, or the server that was asked."""
    seed: int
    ablate: str
    rollouts: tuple[Rollout, ...]
    """In the order of the episodes."""
    pressed: tuple[tuple[str, str] | None, ...]
    """Per episode the (button, gripper) pressed."""
    timing: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict, compare=False)
    """{what: {"p50", "p99" in ms, "count"}}, as `players.Timings` has it."""

    @property
    def num_successes(self) -> int:
        """Episodes that succeeded."""
        return sum(rollout.success for rollout in self.rollouts)

    @property
    def success_rate(self) -> float:
        """Successes per episode, in [0, 1]."""
        return self.num_successes / len(self.rollouts)

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """Per episode its task, whether it succeeded, its environment steps, what was pressed and what it scored."""
        return [
            {
                "task": rollout.task,
                "instance_id": rollout.instance_id,
                "success": rollout.success,
                "q_score": rollout.q_score,
                "steps": rollout.steps,
                "pressed": pressed,
                "failure_reason": rollout.failure_reason,
            }
            for rollout, pressed in zip(self.rollouts, self.pressed, strict=True)
        ]

    def summary(self) -> str:
        """Returns the line that all reports end with."""
        return f"closed-loop success {self.success_rate:.2f} ({self.num_successes} of {len(self.rollouts)})"

    def report(self, other: "Rivals | None" = None) -> str:
        """Returns the table of tasks with intervals, failures, times, a comparison, and `summary`."""
        lines = [score_report.table(self.rollouts)]
        for reason, stems in score_report.failures(self.rollouts).items():
            more = ", ..." if len(stems) > 3 else ""
            lines.append(f"{len(stems)} rollouts failed with {reason}: {', '.join(stems[:3])}{more}")
        if self.timing:
            lines.append(timing_line(self.timing))
        if other is not None:
            lines += [f"against {other.name} ({other.summary()}):", other.compare(self).summary()]
        return "\n".join([*lines, self.summary()])

    def to_json(self, other: "Rivals | None" = None) -> str:
        """Returns everything as JSON text."""
        low, high = intervals.wilson(self.num_successes, len(self.rollouts))
        facts = {
            "success_rate": self.success_rate,
            "success_interval": [low, high],
            "successes": self.num_successes,
            "episodes": len(self.rollouts),
            "q_score": sum(rollout.q_score for rollout in self.rollouts) / len(self.rollouts),
            "checkpoint": self.policy,
            "seed": self.seed,
            "ablate": self.ablate,
            "timing": self.timing,
            "outcomes": self.outcomes,
        }
        if other is not None:
            facts["against"] = {"name": other.name, **dataclasses.asdict(other.compare(self))}
        return json.dumps(facts, indent=2) + "\n"


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Rollouts that a result is compared with."""

    name: str
    rollouts: tuple[Rollout, ...]

    def compare(self, result: Result) -> Comparison:
        """Returns how the result did against these, on the instances both played.

        Raises:
            ValueError: there is none.
        """
        return scores.compare(result.rollouts, self.rollouts)

    def summary(self) -> str:
        """Returns how often these succeeded."""
        successes = sum(rollout.success for rollout in self.rollouts)
        return f"success {successes / len(self.rollouts):.2f}, {successes} of {len(self.rollouts)}"


def timing_line(timing: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the figures of `players.Timings` as a line of text."""
    figures = (f"{name.removesuffix('_ms')} {each['p50']:.1f} / {each['p99']:.1f}" for name, each in timing.items())
    return f"time in ms (p50 / p99): {', '.join(figures)}"
