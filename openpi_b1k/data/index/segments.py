"""What is under way at which frame: annotated durations, made into runs that have an answer for every frame.

Annotated durations leave gaps and overlap. The rules: where several cover a frame, the one that starts last counts; a
frame that none covers belongs to the next that starts, and after the last to the last.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from openpi_b1k.data.index.episodes import EpisodeIndex

NONE = -1
"""Where nothing is annotated."""
NAMED = 3
"""Tasks, and episodes of each, that a message names."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a run shows."""

    text: str
    """As a prompt says it: "pick up radio from coffee table"."""
    skills: tuple[str, ...] = ()
    """Annotated descriptions: "pick up from"; more than one where a segment has several."""
    objects: tuple[str, ...] = ()
    """The simulator's names of its objects, in the annotation's order: "radio_89"."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """Runs of frames of some episodes. Axes: `e` episodes, `r` runs. A row is one of the index these were made for."""

    numbers: np.ndarray
    """int64 [e]: the data set's own, as in the index."""
    offsets: np.ndarray
    """int64 [e + 1]: runs of row i are offsets[i] ... offsets[i + 1] - 1; none where nothing is annotated."""
    first: np.ndarray
    """int64 [r]: first frame, counted in the episode; an episode's runs follow each other from 0 to its length."""
    stop: np.ndarray
    """int64 [r]: end."""
    kind_ids: np.ndarray
    """int64 [r]: which of the kinds a run shows."""
    kinds: tuple[Kind, ...]

    def at(self, row: int, frame: int) -> int:
        """Returns the run that a frame is in, or -1 where the episode has none.

        Raises:
            IndexError: `frame` is negative or past the episode's end.
        """
        low, high = int(self.offsets[row]), int(self.offsets[row + 1])
        if low == high:
            return NONE
        if not 0 <= frame < self.stop[high - 1]:
            raise IndexError(f"frame {frame} is outside [0, {self.stop[high - 1]}) of episode {self.numbers[row]}")
        return low + int(np.searchsorted(self.first[low:high], frame, side="right")) - 1

    def kind_at(self, row: int, frame: int) -> Kind | None:
        """Returns what a frame shows, or None where the episode has no runs."""
        run = self.at(row, frame)
        return None if run == NONE else self.kinds[self.kind_ids[run]]

    def text(self, row: int, frame: int) -> str:
        """Returns what a frame shows in words, "" where the episode has no runs."""
        kind = self.kind_at(row, frame)
        return "" if kind is None else kind.text

    @property
    def rows(self) -> np.ndarray:
        """The row of each run: int64 [r]."""
        return np.repeat(np.arange(len(self.numbers)), np.diff(self.offsets))

    def of(self, index: EpisodeIndex) -> "Segments":
        """Returns those of the index's episodes, in its order, whatever is chosen of them or trimmed.

        Raises:
            ValueError: an episode is not among those these were made for.
        """
        order = np.argsort(self.numbers, kind="stable")
        places = np.searchsorted(self.numbers, index.numbers, sorter=order)
        rows = order[np.minimum(places, len(order) - 1)] if len(order) else np.zeros(len(index.numbers), np.int64)
        if (not len(order) and len(rows)) or not np.array_equal(self.numbers[rows], index.numbers):
            raise ValueError(f"some episodes of {index.root} are not among those the annotations were read for")
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        runs = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Segments(index.numbers, offsets, self.first[runs], self.stop[runs], self.kind_ids[runs], self.kinds)


def resolve(durations: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Returns (first frame, what) of each run, in order; the first begins at 0 and the last has no end.

    Args:
        durations: (start, end, what) with start < end, in any order; what is any number, and neighbours of the same
            number become one run. Of two that start together, the later in the sequence counts.
    """
    ordered = sorted(durations, key=lambda duration: duration[0])  # stable: ties keep their order
    runs: list[tuple[int, int]] = []
    if all(before[1] <= after[0] for before, after in itertools.pairwise(ordered)):
        ends = [0, *(end for _, end, _ in ordered)]
        found = [(first, what) for first, (_, _, what) in zip(ends, ordered, strict=False)]
    else:
        found = _resolve_overlaps(ordered)
    for first, what in found:
        if not runs:
            runs.append((0, what))
        elif runs[-1][1] != what:
            runs.append((first, what))
    return runs


def _resolve_overlaps(ordered: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    edges = sorted({edge for start, end, _ in ordered for edge in (start, end)})
    found = []
    for first in edges[:-1]:
        covering = [what for start, end, what in ordered if start <= first < end]
        following = (what for start, _, what in ordered if start > first)
        found.append((first, covering[-1] if covering else next(following)))
    return found


def join_runs(
    index: EpisodeIndex, counts: np.ndarray, first: np.ndarray, kind_ids: np.ndarray, kinds: tuple[Kind, ...]
) -> Segments:
    """Returns the segments of an index from runs without ends; runs that begin past an episode's end are left out.

    Args:
        index: of the data set.
        counts: runs by row, int64 [e].
        first: their first frames, int64 [r].
        kind_ids: int64 [r].
        kinds: of all of them.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    is_inside = first < index.lengths[rows]
    rows, first, kind_ids = rows[is_inside], first[is_inside], kind_ids[is_inside]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(counts)))]).astype(np.int64)
    stop = np.append(first[1:], 0)
    is_last = offsets[1:][np.diff(offsets) > 0] - 1
    stop[is_last] = index.lengths[rows[is_last]]
    return Segments(index.numbers, offsets, first, stop, kind_ids, kinds)


def named_episodes(index: EpisodeIndex, rows: np.ndarray) -> str:
    """Returns the episodes in those rows in words, such as "turning_on_radio (10, 20, 30 and 5 more)"."""
    named = []
    tasks = np.unique(index.tasks[rows]).tolist()
    for task in tasks[:NAMED]:
        numbers = index.numbers[rows[index.tasks[rows] == task]].tolist()
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        named.append(f"{index.task_names[task]} ({', '.join(map(str, numbers[:NAMED]))}{more})")
    more = f" and {len(tasks) - NAMED} more tasks" if len(tasks) > NAMED else ""
    return f"{', '.join(named)}{more}"
