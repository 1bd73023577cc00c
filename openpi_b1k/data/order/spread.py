"""Which samples of held-out episodes are looked at: always the same, spread over sources, episodes and frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where a held-out sample is."""

    source: int
    """Of the config's."""
    row: int
    """Which of the source's held-out episodes."""
    index: int
    """Among all frames of these."""


def choose(starts: Sequence[np.ndarray], shares: Sequence[float], count: int) -> list[Place]:
    """Returns where about `count` held-out samples are, none twice: the first source's, then the next one's.

    Each source that holds out episodes gives its share of them. A source's are spread evenly over its episodes, in
    the data set's order, and an episode's evenly over its frames: of three, at 1/6, 3/6 and 5/6 of its window. Episodes
    with fewer frames than that give all they have, and others no more for it.

    Args:
        starts: of each source, the first sample of each held-out episode, and their number: int64 [e + 1].
        shares: of the samples, by source.
        count: of samples.
    """
    given = [share if len(firsts) > 1 else 0.0 for share, firsts in zip(shares, starts, strict=True)]
    places = []
    for source, wanted in enumerate(apportioned(given, count)):
        if wanted:
            places += [Place(source, row, index) for row, index in _spread(starts[source], wanted)]
    return places


def apportioned(shares: Sequence[float], count: int) -> list[int]:
    """Returns whole numbers in proportion to `shares`, with the sum `count`; all are 0 where no share is above 0.

    Each is rounded down, and those that lose most by it, of equals the first, get one more.
    """
    total = sum(shares)
    if not total:
        return [0] * len(shares)
    exact = [count * share / total for share in shares]
    counts = [int(number) for number in exact]
    by_loss = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_loss[: count - sum(counts)]:
        counts[i] += 1
    return counts


def _spread(starts: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns (episode, sample) of `count` samples, or fewer, spread over episodes whose first samples are `starts`."""
    lengths = np.diff(starts).tolist()
    bounds = np.arange(len(lengths) + 1) * count // len(lengths)
    samples = []
    for row, (length, wanted) in enumerate(zip(lengths, np.diff(bounds).tolist(), strict=True)):
        parts = min(wanted, length)
        samples += [(row, int(starts[row]) + (2 * part + 1) * length // (2 * parts)) for part in range(parts)]
    return samples
