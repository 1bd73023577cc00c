"""The order of one part of an epoch: a few spans are open at a time, and each gives a short run to every slot.

With 3 spans open and 2 slots between their starts, the runs of spans A, B, C, ... (in random order) make these slots:

    slot   0    1    2    3    4    5    6 ...
           A0   A1   A2   A3   A4   A5          span A gives six runs,
           Y4   Y5   B0   B1   B2   B3   B4     B starts two slots later,
           Z2   Z3   Z4   Z5   C0   C1   C2     and at the start, the last spans are open with their last runs

The samples of a run are shuffled, and the runs of a slot take turns: neighbours in the sequence are of different spans.
Every sample comes once, the same number of spans is open at every time, and what is decoded together is used at about
the same time.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from openpi_b1k.data.order.permutation import derive_seed, shuffled

RUN = 8
"""Most samples that a slot asks of a span."""


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How a lane mixes its spans."""

    num_open: int = 16
    """Spans that are mixed at a time."""
    is_sequential: bool = False
    """Whether a span's samples come in order of their frames, as a decoder gives them, or in random order."""
    num_more: int = 0
    """Parts of an epoch, the first ones, that mix one span more."""

    def open_in(self, number: int) -> int:
        """Returns how many spans part `number` mixes at a time."""
        return self.num_open + (number < self.num_more)


@dataclasses.dataclass(frozen=True)
class Pick:
    """A sample of a source."""

    index: int
    run: np.ndarray | None
    """Sequential spans: the ascending sample indices, this one's too, that its slot asks of its span; int64."""


class Part:
    """The order of a part's samples."""

    def __init__(
        self, counts: np.ndarray, samples: Callable[[int], np.ndarray], mixing: Mixing, seed: int, number: int = 0
    ) -> None:
        """Puts the spans in order.

        Args:
            counts: samples of each span, int64 [p]; at least one sample in all.
            samples: from a span's place in `counts` to the ascending indices of its samples, int64 [counts[place]].
            mixing: of the spans.
            seed: of the part.
            number: of the part in its epoch.
        """
        self._samples, self._mixing, self._seed = samples, mixing, seed
        self._order = shuffled(seed, len(counts))
        self._counts = counts[self._order]
        self._num_open = min(mixing.open_in(number), len(counts))
        self._slots_between = -(-int(counts.max()) // (self._num_open * RUN))
        depths = np.arange(self._num_open)[:, None]
        of_block = _cut(self._counts, depths + 1, self._num_open) - _cut(self._counts, depths, self._num_open)
        self._block_ends = np.cumsum(np.sum([np.roll(row, depth) for depth, row in enumerate(of_block)], axis=0))
        self._begin, self._end = 0, 0
        self._picks: list[Pick] = []
        self._open: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Returns the number of samples."""
        return int(self._block_ends[-1])

    def pick(self, place: int) -> Pick:
        """Returns the sample at `place`; quick for places of the slot that was asked last.

        Raises:
            IndexError: `place` is negative or not below the length.
        """
        if not self._begin <= place < self._end:
            self._enter(place)
        return self._picks[place - self._begin]

    def slot_of(self, place: int) -> tuple[int, int]:
        """Returns (number of the slot, its first place) of a place."""
        block = int(np.searchsorted(self._block_ends, place, side="right"))
        begin = int(self._block_ends[block - 1]) if block else 0
        low, high = self._runs(block)
        ends = begin + np.cumsum((high - low).sum(axis=1))
        slot = int(np.searchsorted(ends, place, side="right"))
        return block * self._slots_between + slot, int(ends[slot - 1]) if slot else begin

    def _runs(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns first rank and end of the runs in the slots from one span's start to the next's: [slot, open]."""
        depths = np.arange(self._num_open)
        numbers = depths * self._slots_between + np.arange(self._slots_between)[:, None]
        counts = self._counts[(block - depths) % len(self._counts)]
        num_runs = self._num_open * self._slots_between
        return _cut(counts, numbers, num_runs), _cut(counts, numbers + 1, num_runs)

    def _enter(self, place: int) -> None:
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} is outside [0, {len(self)}) of a part")
        number, self._begin = self.slot_of(place)
        block, slot = divmod(number, self._slots_between)
        spans = [(block - depth) % len(self._counts) for depth in range(self._num_open)]
        self._open = {span: self._open[span] if span in self._open else self._ordered(span) for span in spans}
        low, high = self._runs(block)
        picks: list[Pick] = []
        for span, first, stop in zip(spans, low[slot].tolist(), high[slot].tolist(), strict=True):
            run = self._open[span][first:stop]
            picks += [Pick(index, run if self._mixing.is_sequential else None) for index in run.tolist()]
        turns = take_turns(high[slot] - low[slot], derive_seed(self._seed, number))
        self._picks = [picks[i] for i in turns.tolist()]
        self._end = self._begin + len(picks)

    def _ordered(self, span: int) -> np.ndarray:
        """Returns a span's samples in the order in which they come."""
        place = int(self._order[span])
        samples = self._samples(place)
        if self._mixing.is_sequential:
            return samples
        # -1 - place: no slot has this number
        return samples[shuffled(derive_seed(self._seed, -1 - place), len(samples))]


def take_turns(sizes: np.ndarray, seed: int) -> np.ndarray:
    """Returns an order of runs that are written one after the other, int64 [sum of sizes]: 0 3 1 4 2 5 for sizes 3, 3.

    Each run is shuffled and spread evenly over the whole, with a random start.
    """
    total = int(sizes.sum())
    runs = np.repeat(np.arange(len(sizes)), sizes)
    in_runs = np.lexsort((shuffled(seed, total), runs))
    turns = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts = (shuffled(derive_seed(seed, 0), len(sizes)) + 0.5) / len(sizes)
    return in_runs[np.argsort((turns + starts[runs]) / sizes[runs], kind="stable")]


def _cut(counts: np.ndarray, numbers: np.ndarray, num_runs: int) -> np.ndarray:
    """Returns the first rank of runs `numbers`, where a span's samples are cut into `num_runs` equal runs."""
    return counts * numbers // num_runs
