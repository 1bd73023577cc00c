"""Which sample of a source comes n-th: 64 lanes, each with a part of the episodes and a shuffle of its own.

The source's sample n belongs to lane n mod 64. An epoch is as many positions as samples are kept, and in it each lane
goes through one part of them: a stretch of neighbouring episodes, so that lanes read different files. `slots.Part` says
in which order. Positions say it all, so nothing is stored, and a run can go on anywhere.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from openpi_b1k.data.order.permutation import derive_seed
from openpi_b1k.data.order.slots import Mixing, Part, Pick

LANES = 64
"""Fixed, as it decides the order; a power of two, so that processes can share the lanes."""
START = 1
"""Tells the seed of a lane's start from others."""
REVERSED = tuple(int(f"{lane:06b}"[::-1], 2) for lane in range(LANES))
"""Each lane's number with its six bits reversed: 1 becomes 32, 2 becomes 16, 3 becomes 48."""


class Spans(Protocol):
    """Pieces of episodes, in order of episode; `spans.SpanTable` is one."""

    @property
    def row(self) -> np.ndarray:
        """Row of the index: int64 [p]."""
        ...

    @property
    def count(self) -> np.ndarray:
        """Samples kept: int64 [p]."""
        ...

    def samples(self, span: int, epoch: int, /) -> np.ndarray:
        """Returns the frames that the epoch keeps of a span, ascending: int64 [count]."""
        ...


class LaneOrder:
    """The order of one source: every kept sample once per epoch. Picklable; remembers where each lane was last."""

    def __init__(self, spans: Spans, offsets: np.ndarray, mixing: Mixing, seed: int) -> None:
        """Shuffles nothing yet.

        Args:
            spans: of the source, with at least one kept sample.
            offsets: what makes a frame of a row the index of a sample, int64 [rows]: sample = offset + frame.
            mixing: of its spans.
            seed: of the run and the source.

        Raises:
            ValueError: no sample is kept.
        """
        self._spans, self._offsets, self._mixing, self._seed = spans, offsets, mixing, seed
        self._ends = np.cumsum(spans.count, dtype=np.int64)
        self.num_samples = int(self._ends[-1]) if len(self._ends) else 0
        """Kept in an epoch."""
        if not self.num_samples:
            raise ValueError("a source keeps no sample; see its tasks, episodes, trim_idle and skill_weights")
        self._parts: dict[int, tuple[int, int, Part, int]] = {}

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own, without what the lanes remember."""
        return LaneOrder, (self._spans, self._offsets, self._mixing, self._seed)

    def pick(self, n: int) -> Pick:
        """Returns what comes at position `n` of the source; quick where each lane goes on from its last position.

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"positions must not be negative; got {n}")
        epoch, position = divmod(n, self.num_samples)
        place, number = divmod(position, LANES)
        lane = n % LANES
        known = self._parts.get(lane)
        if known is None or known[:2] != (epoch, number):
            part = self.part(epoch, number)
            # Lanes start at different points of their slots, or all of them would decode in the same steps.
            start = derive_seed(self._seed, epoch, number, START) % len(part)
            known = (epoch, number, part, start)
            self._parts[lane] = known
        _, _, part, start = known
        return part.pick((place + start) % len(part))

    def part(self, epoch: int, number: int) -> Part:
        """Returns the order, but for where it starts, of positions number, number + 64, ... of an epoch; one must be.

        Parts that neighbour in number lie far apart in the episodes, so that a small batch is mixed, too; those whose
        numbers agree in their last bits, which one process reads, lie together.
        """
        first, stop = self.bounds(number)
        low = int(np.searchsorted(self._ends, first, side="right"))
        high = int(np.searchsorted(self._ends, stop, side="left")) + 1
        before = int(self._ends[low] - self._spans.count[low])
        counts = self._spans.count[low:high].astype(np.int64)
        cut = first - before
        counts[0] -= cut
        counts[-1] -= int(self._ends[high - 1]) - stop
        samples = self._samples_of(epoch, low, cut, counts)
        return Part(counts, samples, self._mixing, derive_seed(self._seed, epoch, number), number)

    def bounds(self, number: int) -> tuple[int, int]:
        """Returns (first, end) of a part among the source's samples, counted along the episodes."""
        sizes, more = divmod(self.num_samples, LANES)
        place = REVERSED[number]
        longer = sum(REVERSED[other] < place for other in range(more))
        first = place * sizes + longer
        return first, first + sizes + (number < more)

    def _samples_of(self, epoch: int, low: int, cut: int, counts: np.ndarray) -> Callable[[int], np.ndarray]:
        def samples(piece: int) -> np.ndarray:
            span = low + piece
            skipped = cut if piece == 0 else 0
            kept = self._spans.samples(span, epoch)[skipped : skipped + int(counts[piece])]
            return self._offsets[self._spans.row[span]] + kept

        return samples
