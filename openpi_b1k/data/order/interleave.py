"""Which source of a mixture a lane's m-th sample comes from: a fixed pattern by weight, found in constant time."""

from collections.abc import Sequence

import numpy as np

PERIOD = 4096
"""Draws after which the pattern repeats; shares are right to 1/4096."""
STRIDE = 2531
"""From a lane's start to the next one's: the golden section of the period, which keeps step with no short pattern."""


class Interleave:
    """The sources of a lane's positions. In every period each source comes by its weight, evenly spread."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Fixes the pattern.

        Args:
            weights: of the sources, above 0; only their ratios count.

        Raises:
            ValueError: a source is too rare to come even once in a period.
        """
        self.counts = largest_remainder(weights, PERIOD)
        """int64 [sources]: draws of each in a period."""
        if not self.counts.all():
            rare = int(np.argmin(self.counts))
            raise ValueError(
                f"source {rare} of the mixture has weight {weights[rare]} of {sum(weights)}; the smallest share that "
                f"can be drawn is 1/{PERIOD}: raise its weight"
            )
        # The j-th of a source's c draws comes at about (j + 1/2)/c of the period; ties go to the earlier source.
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        pattern = sources[np.argsort(times, kind="stable")]
        before = np.cumsum(pattern == np.arange(len(self.counts))[:, None], axis=1)
        self._pattern: list[int] = pattern.tolist()
        self._before: list[list[int]] = [[0, *row] for row in before.tolist()]

    def draw(self, lane: int, m: int) -> tuple[int, int]:
        """Returns (source, how often this lane drew it before) of a lane's position `m`, counted from 0.

        Lanes start at different points of the pattern, so that a batch, which takes few positions of each lane, has
        the shares of the mixture too.
        """
        if len(self.counts) == 1:
            return 0, m
        start = lane * STRIDE % PERIOD
        periods, place = divmod(start + m, PERIOD)
        before = self._before[source := self._pattern[place]]
        return source, periods * int(self.counts[source]) + before[place] - before[start]


def largest_remainder(weights: Sequence[float], total: int) -> np.ndarray:
    """Returns integers in proportion to `weights` with the sum `total`, int64 [sources].

    Each gets its share rounded down, and those with the largest remainders one more: weights 1, 1, 1 and a total of 10
    give 4, 3, 3.
    """
    shares = np.asarray(weights, np.float64) * (total / np.sum(weights, dtype=np.float64))
    counts = np.floor(shares).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    return counts
