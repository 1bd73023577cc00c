"""What the evaluator writes about one rollout: a JSON file of the 2025 or 2026 layout in, the 2026 layout out.

`<output dir>/json/<task>_<instance>_<rollout>.json` (2026) says all about itself; a file of `<output dir>/metrics/`
(2025) holds the same metrics, and its name alone says whose they are.
Source: BEHAVIOR-1K, OmniGibson/omnigibson/{learning/eval.py, eval/evaluator.py} and their metrics.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

PARTS = ("base", "left", "right")
"""Of the robot, whose way is measured: the base and both end effectors."""
FAILURE_REASONS = ("policy_connection_lost", "group_time_budget_exceeded", "policy_error", "policy_query_timeout")
"""Why the 2026 evaluator gives a rollout up although the robot could have gone on."""
TIMEOUT_MULTIPLIER = {"2025": 2.0, "2026": 1.5}
"""Steps allowed, in mean lengths of the human demonstrations."""
STEPS_PER_SECOND = 30
FOLDERS = {"2025": "metrics", "2026": "json"}
"""Of an output directory, by generation."""

_STEM = re.compile(r"(?P<task>.+)_(?P<instance_id>\d+)_(?P<rollout_id>\d+)")


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How one rollout went."""

    task: str
    instance_id: int
    rollout_id: int
    steps: int
    """Environment steps taken."""
    success: bool
    q_score: float
    """In [0, 1]; 1 on success."""
    agent_distance: dict[str, float]
    """How far base, left and right end effector moved, m."""
    normalized_agent_distance: dict[str, float]
    """The human mean over the agent's, so more is shorter; infinite for an agent that did not move."""
    simulator_steps: int
    simulator_time: float
    """Seconds of simulated time."""
    normalized_time: float
    """The human mean length over the agent's, so more is faster."""
    failure_reason: str | None = None
    """Why the evaluator gave up, one of FAILURE_REASONS; None when the rollout was played to its end."""

    def __post_init__(self) -> None:
        """Refuses what no evaluator writes.

        Raises:
            ValueError: a value is out of its range, or values contradict each other.
        """
        if not _STEM.fullmatch(self.stem) or "/" in self.task or not self.task.isprintable():
            raise ValueError(f"{self.stem!r} is no <task>_<instance>_<rollout>; both numbers start at 0")
        if not 0 <= self.q_score <= 1:
            raise ValueError(f"q_score is {self.q_score}, not in [0, 1]")
        if self.success and self.q_score != 1:
            raise ValueError(f"success with a q_score of {self.q_score}; a success scores 1")
        if self.success and self.failure_reason is not None:
            raise ValueError(f"both a success and a failure ({self.failure_reason})")
        for name in ("steps", "simulator_steps", "simulator_time"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, not a finite number from 0")
        if not self.normalized_time > 0:
            raise ValueError(f"normalized_time is {self.normalized_time}; it must be above 0")
        for name in ("agent_distance", "normalized_agent_distance"):
            distances = getattr(self, name)
            if sorted(distances) != sorted(PARTS) or not all(distance >= 0 for distance in distances.values()):
                raise ValueError(f"{name} is {distances}; it holds {PARTS}, each from 0")

    @property
    def stem(self) -> str:
        """The name of its files without suffix."""
        return f"{self.task}_{self.instance_id}_{self.rollout_id}"

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from others: task, instance, rollout."""
        return self.task, self.instance_id, self.rollout_id

    def to_json(self) -> str:
        """Returns the 2026 layout. An infinite ratio is written `Infinity`, as the evaluator does."""
        facts: dict[str, Any] = {
            "task": self.task,
            "instance_id": self.instance_id,
            "rollout_id": self.rollout_id,
            "steps": self.steps,
            "success": self.success,
            "agent_distance": self.agent_distance,
            "normalized_agent_distance": self.normalized_agent_distance,
            "q_score": {"final": self.q_score},
            "time": {
                "simulator_steps": self.simulator_steps,
                "simulator_time": self.simulator_time,
                "normalized_time": self.normalized_time,
            },
        }
        if self.failure_reason is not None:
            facts["failure_reason"] = self.failure_reason
        return json.dumps(facts, indent=4) + "\n"


def failed(task: str, instance_id: int, rollout_id: int, reason: str, steps: int) -> Rollout:
    """Returns the record of a rollout the evaluator gave up: all its scores are 0, its time is that of the time limit.

    Raises:
        ValueError: the reason is none of FAILURE_REASONS.
    """
    if reason not in FAILURE_REASONS:
        raise ValueError(f"no failure {reason!r}; known: {FAILURE_REASONS}")
    return Rollout(
        task=task,
        instance_id=instance_id,
        rollout_id=rollout_id,
        steps=steps,
        success=False,
        q_score=0.0,
        agent_distance=dict.fromkeys(PARTS, 0.0),
        normalized_agent_distance=dict.fromkeys(PARTS, 0.0),
        simulator_steps=steps,
        simulator_time=steps / STEPS_PER_SECOND,
        normalized_time=1 / TIMEOUT_MULTIPLIER["2026"],
        failure_reason=reason,
    )


def write(output_dir: pathlib.Path, rollout: Rollout) -> pathlib.Path:
    """Writes `<output_dir>/json/<stem>.json`, whole or not at all, and returns its path. An earlier one is replaced."""
    path = output_dir / FOLDERS["2026"] / f"{rollout.stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".json.new")
    unfinished.write_text(rollout.to_json(), encoding="utf-8")
    unfinished.replace(path)
    return path


def read(path: pathlib.Path) -> Rollout:
    """Returns the rollout of a file in either year's layout.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no rollout; the message tells the file and what is wrong.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        named = parse_stem(path.stem)
        return _rollout_2026(facts, named) if isinstance(facts, dict) and "task" in facts else _rollout(facts, named)
    except (ValueError, OverflowError, RecursionError) as error:  # no text, no JSON, huge numbers, endless brackets
        raise ValueError(f"{path}: {error}") from error


def parse_stem(stem: str) -> tuple[str, int, int]:
    """Returns task, instance and rollout of a file's name without suffix.

    Raises:
        ValueError: it is none of a rollout.
    """
    match = _STEM.fullmatch(stem)
    if match is None or f"{match['task']}_{int(match['instance_id'])}_{int(match['rollout_id'])}" != stem:
        raise ValueError(f"the name {stem!r} is no <task>_<instance>_<rollout>, such as turning_on_radio_301_0")
    return match["task"], int(match["instance_id"]), int(match["rollout_id"])


def folder(output_dir: pathlib.Path) -> pathlib.Path:
    """Returns where an evaluator's output directory holds its rollouts: `json` (2026) or `metrics` (2025).

    Raises:
        FileNotFoundError: it has neither.
        ValueError: it has both, so one would be left out.
    """
    found = [output_dir / name for name in FOLDERS.values() if (output_dir / name).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"no rollouts in {output_dir}: it has neither json/ (2026) nor metrics/ (2025); "
            f"give what the evaluator was given as --output-dir (2026) or log_path (2025)"
        )
    if len(found) > 1:
        raise ValueError(f"{output_dir} has both json/ and metrics/; keep each year in a directory of its own")
    return found[0]


def read_all(output_dir: pathlib.Path) -> list[Rollout]:
    """Returns the rollouts of an evaluator's output directory, either year's, ordered by name.

    A file's name tells its rollout, so no rollout can be there twice.

    Raises:
        FileNotFoundError: there is no directory of rollouts.
        ValueError: a file is no rollout.
    """
    return [read(path) for path in sorted(folder(output_dir).glob("*.json"))]


def _rollout_2026(facts: Mapping[str, Any], named: tuple[str, int, int]) -> Rollout:
    """Returns the rollout of a file that also says whose it is."""
    key = _text(facts, "task"), _integer(facts, "instance_id"), _integer(facts, "rollout_id")
    if key != named:
        raise ValueError(f"the name says {named}, the content {key}; one rollout must not be counted as another")
    success = _find(facts, "success")
    if not isinstance(success, bool):
        raise ValueError(f"success is {success!r}, not true or false")
    reason = None if facts.get("failure_reason") is None else _text(facts, "failure_reason")
    return dataclasses.replace(
        _rollout(facts, named), steps=_integer(facts, "steps"), success=success, failure_reason=reason
    )


def _rollout(facts: object, named: tuple[str, int, int]) -> Rollout:
    """Returns the rollout of what both years write; success is a q-score of 1."""
    task, instance_id, rollout_id = named
    q_score = _number(facts, "q_score", "final")
    return Rollout(
        task=task,
        instance_id=instance_id,
        rollout_id=rollout_id,
        steps=_integer(facts, "time", "simulator_steps"),
        success=q_score == 1,
        q_score=q_score,
        agent_distance={part: _number(facts, "agent_distance", part) for part in PARTS},
        normalized_agent_distance={part: _number(facts, "normalized_agent_distance", part) for part in PARTS},
        simulator_steps=_integer(facts, "time", "simulator_steps"),
        simulator_time=_number(facts, "time", "simulator_time"),
        normalized_time=_number(facts, "time", "normalized_time"),
    )


def _find(facts: object, *names: str) -> object:
    """Returns what is at a path of names; `facts` is whatever the JSON held."""
    for depth, name in enumerate(names):
        if not isinstance(facts, dict) or name not in facts:
            raise ValueError(f"no {'.'.join(names[: depth + 1])}; is this the evaluator's file about one rollout?")
        facts = facts[name]
    return facts


def _number(facts: object, *names: str) -> float:
    value = _find(facts, *names)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{'.'.join(names)} is {value!r}, not a number")
    return float(value)


def _integer(facts: object, *names: str) -> int:
    value = _find(facts, *names)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{'.'.join(names)} is {value!r}, not a whole number")
    return value


def _text(facts: Mapping[str, Any], name: str) -> str:
    value = _find(facts, name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}, not a text")
    return value
