"""What a set of episodes contributes to the statistics of state and actions: mergeable, and kept in a file."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from openpi_b1k.data.statistics.distribution import Distribution
from openpi_b1k.transforms.normalize import FieldStats, NormStats

GRID_KEPT = 0
"""Bins a stored distribution has if it keeps its values."""


@dataclasses.dataclass(eq=False)
class Summary:
    """Distributions of each entry, of a number of frames."""

    frames: int
    state: list[Distribution]
    """By entry."""
    actions: list[list[Distribution]]
    """By step of the chunk, then by entry; one step stands for all where they are counted together."""

    @staticmethod
    def empty(state_size: int, action_size: int, num_steps: int) -> "Summary":
        """Returns the summary of no frames."""
        entries = [[Distribution() for _ in range(action_size)] for _ in range(num_steps)]
        return Summary(0, [Distribution() for _ in range(state_size)], entries)

    @property
    def distributions(self) -> list[Distribution]:
        """All of them: the state's, then the actions' step by step."""
        return [*self.state, *(entry for step in self.actions for entry in step)]

    def merge(self, other: "Summary", scale: float = 1.0) -> None:
        """Adds another summary, its counts times `scale`.

        Raises:
            ValueError: it is of other entries or another number of steps.
        """
        if self.shape != other.shape:
            raise ValueError(f"statistics of {other.shape} entries cannot be merged into those of {self.shape}")
        for ours, theirs in zip(self.distributions, other.distributions, strict=True):
            ours.merge(theirs, scale)
        self.frames += other.frames

    @property
    def shape(self) -> tuple[int, int, int]:
        """Entries of the state, steps, entries of an action."""
        return len(self.state), len(self.actions), len(self.actions[0])

    def result(self) -> NormStats:
        """Returns the statistics; the actions' are [steps, entries] where steps are counted by themselves.

        Raises:
            ValueError: there are no frames, or no episode is as long as the chunk's last step is far.
        """
        empty = [i for i, step in enumerate(self.actions) if not step[0].count]
        if not self.frames:
            raise ValueError("no statistics of no frames; the data set is empty")
        if empty:
            raise ValueError(
                f"no statistics of action step {empty[0]}: no episode has that many frames; set "
                "--data.transforms.per-step-norm False, or a shorter --model.action-horizon"
            )
        actions = [field_stats(step) for step in self.actions]
        stacked = actions[0]
        if len(actions) > 1:
            arrays = np.stack([[field.mean, field.std, field.q01, field.q99] for field in actions], axis=1)
            stacked = FieldStats(*arrays)
        return NormStats(field_stats(self.state), stacked)

    def save(self, path: pathlib.Path) -> None:
        """Writes the summary to a file that appears when it is whole."""
        entries = self.distributions
        content = io.BytesIO()
        np.savez_compressed(
            content,
            frames=self.frames,
            shape=self.shape,
            moments=[[entry.count, entry.mean, entry.squares, entry.low, entry.high] for entry in entries],
            grids=[[e.exponent or 0, e.first, GRID_KEPT if e.exponent is None else len(e.counts)] for e in entries],
            sizes=[[len(entry.counts), len(entry.values)] for entry in entries],
            counts=np.concatenate([entry.counts for entry in entries]),
            values=np.concatenate([entry.values for entry in entries]),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.partial")
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)

    @staticmethod
    def load(path: pathlib.Path) -> "Summary":
        """Returns the summary that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
        """
        with np.load(path, allow_pickle=False) as file:
            stored = dict(file)
        summary = Summary.empty(int(stored["shape"][0]), int(stored["shape"][2]), int(stored["shape"][1]))
        summary.frames = int(stored["frames"])
        ends = np.cumsum(stored["sizes"], axis=0)
        for i, entry in enumerate(summary.distributions):
            counts, values = (slice(end - size, end) for end, size in zip(ends[i], stored["sizes"][i], strict=True))
            entry.count, entry.mean, entry.squares, entry.low, entry.high = stored["moments"][i].tolist()
            exponent, first, bins = stored["grids"][i].tolist()
            entry.exponent, entry.first = (None if bins == GRID_KEPT else exponent), first
            entry.counts, entry.values = stored["counts"][counts], stored["values"][values]
        return summary


def pooled(parts: Iterable[tuple[Summary, float]]) -> Summary:
    """Returns the summary of a mixture in which a part's weight is its share of the samples drawn.

    A frame of a part counts weight / frames of that part, times a factor that leaves the number of frames as it is.

    Raises:
        ValueError: a part has no frames, or the parts do not have the same entries.
    """
    parts = list(parts)
    if not all(summary.frames for summary, _ in parts):
        raise ValueError("a source of a mixture has no frames; leave it out")
    frames, weights = sum(summary.frames for summary, _ in parts), sum(weight for _, weight in parts)
    state_size, num_steps, action_size = parts[0][0].shape
    mixture = Summary.empty(state_size, action_size, num_steps)
    for summary, weight in parts:
        mixture.merge(summary, weight / weights * frames / summary.frames)
    return mixture


def of_rows(rows: np.ndarray) -> FieldStats:
    """Returns the statistics of vectors float32 [n, d]."""
    entries = [Distribution() for _ in range(rows.shape[1])]
    for entry, values in zip(entries, np.ascontiguousarray(rows.T), strict=True):
        entry.update(values)
    return field_stats(entries)


def field_stats(entries: Sequence[Distribution]) -> FieldStats:
    """Returns the statistics of a vector's entries."""
    quantiles = np.array([entry.quantiles() for entry in entries])
    return FieldStats(
        mean=np.array([entry.mean for entry in entries]),
        std=np.array([entry.std() for entry in entries]),
        q01=quantiles[:, 0],
        q99=quantiles[:, 1],
    )
