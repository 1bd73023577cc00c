"""The tables of a result, for the terminal and for its page: the same rows of the same texts."""

import dataclasses

import numpy as np

from openpi_b1k.evaluation.open_loop.baselines import EXPLAINED
from openpi_b1k.evaluation.open_loop.result import METHODS, Result

DIGITS = 3
"""Significant ones."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Returns it with aligned columns, the first to the left and the others to the right."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        texts = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {text}" for text in texts)])


def summary(result: Result) -> str:
    """Returns what the terminal shows: what was compared, the tables, and which fields a baseline does better."""
    named = [f"{name}: {explained}" for name, explained in EXPLAINED.items()]
    parts = [
        heading(result),
        *(f"note: {note}" for note in result.notes),
        *map(str, tables(result)),
        "\n".join(["baselines", *(f"  {line}" for line in named)]),
        verdict(result),
    ]
    return "\n\n".join(parts)


def heading(result: Result) -> str:
    """Returns a line on what was compared with what."""
    facts = result.facts
    return (
        f"open loop: {facts['checkpoint']} on {facts['data']}, {facts['split']} episodes: "
        f"{len(result.episodes)} frames of {len(np.unique(result.episodes))} episodes, "
        f"chunks of {result.action_horizon} actions, seed {facts['seed']}"
    )


def verdict(result: Result) -> str:
    """Returns a sentence on the fields in which the policy is no nearer than a baseline."""
    means, best = result.means(), result.best_baselines()
    worse = [
        f"{name} ({METHODS[best[f]]})" for f, name in enumerate(result.layout.names) if means[0, f] > means[best[f], f]
    ]
    if not worse:
        return "The policy is at least as near to the demonstrations as every baseline, in every field."
    return f"The policy is further from the demonstrations than a baseline in: {', '.join(worse)}."


def tables(result: Result) -> list[Table]:
    """Returns the errors by field, by step, by task and, where anything is annotated, by skill."""
    found = [_by_field(result), _by_step(result), _grouped(result, "task")]
    return [*found, _grouped(result, "skill")] if len(result.groups("skill")) > 1 else found


def _by_field(result: Result) -> Table:
    means, wins = result.means(), result.wins()
    rows = [
        (
            name,
            result.unit(f),
            *map(_text, means[:, f]),
            f"{100 * wins[f][0]:.0f} % ({100 * wins[f][1].low:.0f} to {100 * wins[f][1].high:.0f})",
        )
        for f, name in enumerate(result.layout.names)
    ]
    head = ("field", "in", *METHODS, "episodes nearer than the best baseline")
    return Table("mean error by field", head, tuple(rows))


def _by_step(result: Result) -> Table:
    by_step, steps = result.by_step(), result.named_steps
    rows = [
        (name, method, *(_text(by_step[m, f, step - 1]) for step in steps))
        for f, name in enumerate(result.layout.names)
        for m, method in enumerate(METHODS)
    ]
    head = ("field", "of", *(f"step {step}" for step in steps))
    return Table("mean error by step of the chunk", head, tuple(rows))


def _grouped(result: Result, kind: str) -> Table:
    best = result.best_baselines()
    rows = []
    for group, frames in result.groups(kind).items():
        means = result.means(frames)
        cells = (f"{_text(means[0, f])} / {_text(means[best[f], f])}" for f in range(len(best)))
        rows.append((group, str(int(frames.sum())), *cells))
    head = (kind, "frames", *result.layout.names)
    return Table(f"mean error by {kind}: of the policy / of the field's best baseline over all", head, tuple(rows))


def _text(value: float) -> str:
    return f"{value:.{DIGITS}g}" if np.isfinite(value) else "-"
