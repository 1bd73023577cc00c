"""Errors of a policy's chunks and of the baselines', and the means that are reported of them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from openpi_b1k.evaluation.open_loop.baselines import EXPLAINED
from openpi_b1k.robots.chunk_errors import STEPS, ErrorSums, is_gripper
from openpi_b1k.robots.layout import Layout
from openpi_b1k.rollouts.intervals import Interval, wilson

POLICY = "policy"
METHODS = (POLICY, *EXPLAINED)
"""Whose errors there are, in their order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Errors of each frame's chunks. Axes: `m` methods, `n` frames, `f` fields of the action, `ah` steps."""

    errors: np.ndarray
    """float64 [m, n, f, ah], see `step_errors`; of METHODS."""
    step_mask: np.ndarray
    """bool [n, ah]: steps before the episode's end, which alone count."""
    layout: Layout
    """Of the actions."""
    episodes: np.ndarray
    """int64 [n]: the data set's numbers."""
    tasks: tuple[str, ...]
    """Of each frame."""
    skills: tuple[str, ...]
    """Of each frame."""
    facts: Mapping[str, Any]
    """Checkpoint, data, split, seed: what the numbers are of. Any: JSON."""
    notes: tuple[str, ...]
    """What a reader should know, a sentence or two each."""

    @property
    def action_horizon(self) -> int:
        """Steps of a chunk."""
        return self.step_mask.shape[1]

    @property
    def named_steps(self) -> list[int]:
        """Steps, counted from 1, that tables have a column for: those that validation names, and the last one."""
        return [step for step in sorted({*STEPS, self.action_horizon}) if step <= self.action_horizon]

    def groups(self, kind: str) -> dict[str, np.ndarray]:
        """Returns which frames are of each task or each skill, bool [n] by name, in order of name."""
        names = np.asarray({"task": self.tasks, "skill": self.skills}[kind])
        return {name: names == name for name in np.unique(names).tolist()}

    def means(self, frames: np.ndarray | None = None) -> np.ndarray:
        """Returns mean errors over all steps that count, float64 [m, f]: of all frames, or those in a mask [n]."""
        sums = self._sums(frames)
        return np.stack([each.sums.sum(axis=-1) / each.counts.sum() for each in sums])

    def by_step(self) -> np.ndarray:
        """Returns mean errors of all frames at each step, float64 [m, f, ah]; NaN at steps that no frame has."""
        return np.stack([each.by_step() for each in self._sums(None)])

    def _sums(self, frames: np.ndarray | None) -> list[ErrorSums]:
        chosen = slice(None) if frames is None else frames
        return [ErrorSums.of(errors[chosen], self.step_mask[chosen]) for errors in self.errors]

    def best_baselines(self) -> np.ndarray:
        """Returns the method with the smallest mean error, the policy aside, of each field: int64 [f]."""
        return self.means()[1:].argmin(axis=0) + 1

    def wins(self) -> list[tuple[float, Interval]]:
        """Returns of each field the share of episodes in which the policy is nearer than that field's best baseline.

        Episodes and not frames are counted, since an episode's frames resemble each other; with equal errors, an
        episode counts half. Each share has its Wilson interval of 95 %.
        """
        by_episode = np.stack([self.means(self.episodes == number) for number in np.unique(self.episodes)])
        fields = np.arange(len(self.layout.names))
        policy, other = by_episode[:, 0], by_episode[:, self.best_baselines(), fields]
        won = np.where(policy == other, 0.5, policy < other)
        return [(float(column.mean()), wilson(float(column.sum()), len(column))) for column in won.T]

    def unit(self, field: int) -> str:
        """Returns what a field's errors are in."""
        name = self.layout.names[field]
        return "wrong decisions, share" if is_gripper(name) else self.layout.fields[field].unit.split(" in ")[0]

    def to_json(self) -> str:
        """Returns every mean as JSON text; None at steps that no frame has."""
        means, by_step, wins = self.means(), self.by_step(), self.wins()
        fields = {
            name: {
                "unit": self.unit(f),
                "error": dict(zip(METHODS, means[:, f].tolist(), strict=True)),
                "error_by_step": {
                    method: [value if np.isfinite(value) else None for value in by_step[m, f].tolist()]
                    for m, method in enumerate(METHODS)
                },
                "best_baseline": METHODS[self.best_baselines()[f]],
                "nearer_in_episodes": {"share": wins[f][0], **wins[f][1]._asdict()},
            }
            for f, name in enumerate(self.layout.names)
        }
        content = {
            **self.facts,
            "frames": len(self.episodes),
            "episodes": len(np.unique(self.episodes)),
            "action_horizon": self.action_horizon,
            "notes": self.notes,
            "baselines": EXPLAINED,
            "fields": fields,
            "tasks": self._grouped("task"),
            "skills": self._grouped("skill"),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _grouped(self, kind: str) -> dict[str, Any]:  # Any: JSON
        found = {}
        for group, frames in self.groups(kind).items():
            means = self.means(frames)
            errors = {
                name: dict(zip(METHODS, means[:, f].tolist(), strict=True)) for f, name in enumerate(self.layout.names)
            }
            found[group] = {"frames": int(frames.sum()), "error": errors}
        return found
