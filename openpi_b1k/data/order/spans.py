"""The pieces of episodes that are shuffled as wholes, and which of their frames are kept."""

import dataclasses
import difflib
from collections.abc import Mapping

import numpy as np

from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import Segments, named_episodes
from openpi_b1k.data.order.permutation import sample_index

UNITS = 2**32
"""Values of a random number in [0, 1): few enough that its sum with a frame is exact."""
GOLDEN = 0x9E3779B97F4A7C15
FRAMES = 2**20
"""More than an episode has: number * FRAMES + frame is a frame of the data set."""
EVERY_SKILL = "all"
"""The name of every skill that has no weight of its own."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpanTable:
    """Spans of episodes. Axes: `p` spans, `q` pieces: a span's frames of one skill, where skills have weights.

    A span's number of kept frames never changes; which ones they are changes by epoch. Spans that keep none are left
    out. Pure in (seed, epoch, span); picklable.
    """

    row: np.ndarray
    """int64 [p]: of the index."""
    first: np.ndarray
    """int64 [p]: first frame of the span, counted in the episode."""
    stop: np.ndarray
    """int64 [p]: end of the span."""
    count: np.ndarray
    """int64 [p]: frames kept of it; without skill weights all."""
    pieces: "_Pieces | None"
    """How kept frames are chosen; None keeps all."""

    def __len__(self) -> int:
        """Returns the number of spans."""
        return len(self.row)

    @property
    def num_samples(self) -> int:
        """Frames kept per epoch."""
        return int(self.count.sum())

    def samples(self, span: int, epoch: int) -> np.ndarray:
        """Returns the frames of a span that an epoch keeps, counted in the episode: int64 [count], ascending."""
        if self.pieces is None:
            return np.arange(self.first[span], self.stop[span])
        return self.pieces.frames(span, epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pieces:
    """Spans cut where the skill changes."""

    offsets: np.ndarray
    """int64 [p + 1]: pieces of span i are offsets[i] ... offsets[i + 1] - 1."""
    first: np.ndarray
    stop: np.ndarray
    count: np.ndarray
    """int64 [q]"""
    seeds: np.ndarray
    """uint64 [q]: of a piece's choice of frames; the same whatever else is in the table."""

    def of_spans(self, span: np.ndarray, kept: np.ndarray) -> "_Pieces":
        """Returns the pieces of the kept spans that keep a frame, of pieces whose spans are given."""
        chosen = np.flatnonzero(self.count)
        offsets = np.append(np.searchsorted(span[chosen], kept), len(chosen))
        parts = {name: getattr(self, name)[chosen] for name in ("first", "stop", "count", "seeds")}
        return _Pieces(offsets, **parts)

    def frames(self, span: int, epoch: int) -> np.ndarray:
        """Returns the frames that an epoch keeps of a span."""
        chosen = []
        for piece in range(self.offsets[span], self.offsets[span + 1]):
            first, stop, count = (int(edges[piece]) for edges in (self.first, self.stop, self.count))
            length = stop - first
            if count == length:
                chosen.append(np.arange(first, first + length))
            else:
                positions = epoch * length + np.arange(count)
                chosen.append(first + np.sort(sample_index(int(self.seeds[piece]), positions, length)))
        return np.concatenate(chosen)


def span_table(
    index: EpisodeIndex,
    skills: Segments | None,
    weights: Mapping[str, float],
    longest: int,
    aligned: bool,
    seed: int,
) -> SpanTable:
    """Returns the spans of all windows of an index.

    Of L frames of a skill with weight w, w * L are kept, rounded up or down at random, and spread evenly over the spans
    they are in.

    Args:
        index: of the data set; its windows are cut into spans.
        skills: of the same index; None where no skill has a weight.
        weights: part of its frames kept, in [0, 1], by skill; "all" is every skill not named, and else those keep all.
        longest: frames of the longest span.
        aligned: cut at multiples of `longest` from the episode's frame 0; otherwise into equal parts of the window.
        seed: of the run.

    Raises:
        ValueError: a weight names a skill that the data do not have, an episode has no skills, or no frame is kept.
    """
    row, first, stop = _cut(index, longest, aligned)
    if not weights:
        return SpanTable(row, first, stop, stop - first, None)
    if skills is None:
        raise ValueError("skill_weights need the episodes' skills: give those of annotations.read_annotations")
    run_weights = _weights_of_runs(index, skills, weights)
    span, pieces = _cut_by_skill(index, skills, run_weights, (row, first, stop), seed)
    count = np.bincount(span, pieces.count, len(row)).astype(np.int64)
    kept = np.flatnonzero(count)
    if not len(kept):
        raise ValueError("skill_weights keep no frame; raise one of them")
    return SpanTable(row[kept], first[kept], stop[kept], count[kept], pieces.of_spans(span, kept))


def _weights_of_runs(index: EpisodeIndex, skills: Segments, weights: Mapping[str, float]) -> np.ndarray:
    """Returns the weight of each run's skill, float64 [r]; of several skills at once, the largest."""
    if not np.array_equal(skills.numbers, index.numbers):
        raise ValueError("the skills are not those of the index; take them with `skills.of(index)`")
    lacking = np.flatnonzero(np.diff(skills.offsets) == 0)
    if len(lacking):
        raise ValueError(
            f"--data.skill-weights needs skills, which are in annotations/; {len(lacking)} of {len(index.numbers)} "
            f"chosen episodes of {index.root} have none: {named_episodes(index, lacking)}. Copy them there "
            "(scripts/download_dataset.py), or choose other episodes with --data.tasks or --data.episodes"
        )
    in_use = [skills.kinds[kind] for kind in np.unique(skills.kind_ids).tolist()]
    known = sorted({name for kind in in_use for name in kind.skills})
    for name in weights:
        if name not in known and name != EVERY_SKILL:
            close = difflib.get_close_matches(name, [*known, EVERY_SKILL], n=1)
            hint = f"did you mean {close[0]!r}? The data have" if close else "the data have"
            raise ValueError(
                f"no skill {name!r} in {index.root}, but skill_weights names it; {hint} {', '.join(known)}"
            )
    others = weights.get(EVERY_SKILL, 1.0)
    by_kind = [max((weights.get(name, others) for name in kind.skills), default=others) for kind in skills.kinds]
    return np.array(by_kind, np.float64)[skills.kind_ids]


def _cut_by_skill(
    index: EpisodeIndex,
    skills: Segments,
    run_weights: np.ndarray,
    spans: tuple[np.ndarray, np.ndarray, np.ndarray],
    seed: int,
) -> tuple[np.ndarray, _Pieces]:
    """Returns the span of each piece, and the pieces of all spans.

    Frames are numbered through all episodes here. Of the first x frames of a run with weight w, floor(w x + u) are
    kept, with u uniform in [0, 1) by run: its pieces share out w times its frames, rounded once.
    """
    row, first, stop = spans
    base = np.concatenate([[0], np.cumsum(index.lengths)])
    span_first, run_first = base[row] + first, base[skills.rows] + skills.first
    around = np.searchsorted(span_first, run_first, side="right") - 1
    is_inside = (around >= 0) & (run_first > span_first[around]) & (run_first < (base[row] + stop)[around])
    edges = np.sort(np.concatenate([span_first, run_first[is_inside]]))
    span = np.searchsorted(span_first, edges, side="right") - 1
    run = np.searchsorted(run_first, edges, side="right") - 1
    ends = np.minimum(np.append(edges[1:], base[-1]), (base[row] + stop)[span])
    keys = index.numbers[skills.rows] * FRAMES + skills.first
    offset = sample_index(seed, keys, UNITS)[run] / UNITS
    weight = run_weights[run]
    before, after = (np.floor(weight * (edge - run_first[run]) + offset) for edge in (edges, ends))
    frames = edges - base[row[span]]
    numbers = (index.numbers[row[span]] * FRAMES + frames).astype(np.uint64)
    return span, _Pieces(
        offsets=np.searchsorted(span, np.arange(len(row) + 1)),
        first=frames,
        stop=ends - base[row[span]],
        count=(after - before).astype(np.int64),
        seeds=numbers + np.uint64(seed * GOLDEN % 2**64),
    )


def _cut(index: EpisodeIndex, longest: int, aligned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, first and stop of spans that together are all windows, in order."""
    if longest < 1:
        raise ValueError(f"longest must be at least 1; got {longest}")
    begins, ends = index.begins, index.ends
    lowest = begins // longest if aligned else np.zeros_like(begins)
    highest = -(-ends // longest) if aligned else -(-(ends - begins) // longest)
    numbers = np.maximum(highest - lowest, 0)
    row = np.repeat(np.arange(len(begins)), numbers)
    place = np.arange(len(row)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    if aligned:
        edge = (lowest[row] + place) * longest
        return row, np.maximum(edge, begins[row]), np.minimum(edge + longest, ends[row])
    length = (ends - begins)[row]
    first = begins[row] + place * length // numbers[row]
    return row, first, begins[row] + (place + 1) * length // numbers[row]
