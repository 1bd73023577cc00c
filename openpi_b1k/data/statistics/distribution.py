"""The distribution of one number: exact moments, and quantiles whose error is bounded. Two of them can be merged.

Up to EXACT_VALUES values are kept as they are, and quantiles are those of np.quantile. Of more, a histogram remains
whose bins are [i * 2**e, (i + 1) * 2**e): e is a function of the least and the greatest value alone, the smallest that
needs at most NUM_BINS bins. Bins are therefore never wider than 2 / (NUM_BINS - 1) = 0.00025 of the range, which bounds
the error of a quantile, and since a coarser grid's bins are whole bins of a finer one, merging parts in any order gives
the same counts as counting all at once.
"""

import dataclasses
import math

import numpy as np

EXACT_VALUES = 65_536
NUM_BINS = 8192
QUANTILES = (0.01, 0.99)
_MIN_EXPONENT = -100
_MANTISSA_BITS = 24


def grid_exponent(low: float, high: float) -> int:
    """Returns e of the bins for values in [low, high]. Finer than a float32's last bit is never needed."""
    exponent = max(
        _MIN_EXPONENT,
        math.frexp(max(abs(low), abs(high)))[1] - _MANTISSA_BITS,
        math.frexp((high - low) / NUM_BINS)[1] - 1 if high > low else _MIN_EXPONENT,
    )
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= NUM_BINS:
        exponent += 1
    return exponent


@dataclasses.dataclass(eq=False)
class Distribution:
    """Count, moments and quantiles of one number; counts are weights and need not be whole."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""
    low: float = math.inf
    high: float = -math.inf
    exponent: int | None = None
    """e of the bins, or None as long as all values are kept."""
    first: int = 0
    """Number i of the first bin."""
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    """float64 [bins], or the weights of the kept values."""
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    """float32: the kept values."""

    def update(self, values: np.ndarray, weights: np.ndarray | int = 1) -> None:
        """Adds float32 values [n], each as often as its weight says: float64 [n], or one for all."""
        if not len(values):
            return
        exact = values.astype(np.float64)
        if isinstance(weights, int):
            mean = float(exact.mean())
            exact -= mean
            # Not a dot product, which would wake the threads of a BLAS in each of ours.
            self.add_moments(weights * len(values), mean, weights * float(np.einsum("i,i", exact, exact)))
        else:
            count = float(weights.sum())
            mean = float(np.einsum("i,i", exact, weights)) / count
            exact -= mean
            self.add_moments(count, mean, float(np.einsum("i,i,i", exact, exact, weights)))
        self.add_values(values, weights)

    def add_moments(self, count: float, mean: float, squares: float) -> None:
        """Adds values known by number, mean and squared deviations. Source: Chan et al. (1979), pairwise update."""
        if not count:
            return
        total, shift = self.count + count, mean - self.mean
        self.squares += squares + shift**2 * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def add_values(self, values: np.ndarray, weights: np.ndarray | int = 1) -> None:
        """Adds float32 values [n] to what quantiles are taken of, and to nothing else."""
        if not len(values):
            return
        if self.exponent is None and len(self.values) + len(values) <= EXACT_VALUES:
            self._keep(values, np.broadcast_to(np.float64(weights), values.shape))
            return
        exponent = self.cover(float(values.min()), float(values.max()))
        scaled = values * np.float32(2.0**-exponent)
        self._count(np.floor(scaled, out=scaled), weights)

    def cover(self, low: float, high: float) -> int:
        """Makes bins for values in [low, high], and returns their e; kept values move into them."""
        if self.exponent is not None and self.low <= low and high <= self.high:
            return self.exponent
        values, weights = self.values, self.counts
        was = self.exponent
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = grid_exponent(self.low, self.high)
        first = math.floor(math.ldexp(self.low, -exponent))
        size = math.floor(math.ldexp(self.high, -exponent)) - first + 1
        counts = np.zeros(size)
        if was is not None:
            _add_coarser(counts, first, self.counts, self.first, exponent - was)
        self.exponent, self.first, self.counts, self.values = exponent, first, counts, values[:0]
        if was is None:
            self._count(np.floor(values * np.float32(2.0**-exponent)), weights)
        return exponent

    def _count(self, numbers: np.ndarray, weights: np.ndarray | int) -> None:
        """Adds values given by their bins' numbers, float32 [n], which are overwritten; `cover` made the bins."""
        numbers -= np.float32(self.first)  # exact: a bin's number has no more digits than the values
        bins = numbers.astype(np.intp)
        if isinstance(weights, int):
            self.counts += np.bincount(bins, minlength=len(self.counts)) * weights
        else:
            self.counts += np.bincount(bins, weights, minlength=len(self.counts))

    def merge(self, other: "Distribution", scale: float = 1.0) -> None:
        """Adds another distribution, its counts times `scale`."""
        self.add_moments(other.count * scale, other.mean, other.squares * scale)
        if other.exponent is None:
            if self.exponent is None and len(self.values) + len(other.values) <= EXACT_VALUES:
                self._keep(other.values, other.counts * scale)
            elif len(other.values):
                self.cover(other.low, other.high)
                self.merge_bins(other.binned(self.low, self.high), scale)
            return
        self.cover(other.low, other.high)
        self.merge_bins(other, scale)

    def merge_bins(self, other: "Distribution", scale: float) -> None:
        """Adds the bins of a distribution whose range is covered."""
        if self.exponent is None or other.exponent is None:
            raise ValueError("bins can be merged only into bins; call cover first")
        _add_coarser(self.counts, self.first, other.counts * scale, other.first, self.exponent - other.exponent)

    def binned(self, low: float, high: float) -> "Distribution":
        """Returns a copy that has bins for [low, high] as well."""
        copy = dataclasses.replace(self, counts=self.counts.copy(), values=self.values.copy())
        copy.cover(low, high)
        return copy

    def std(self) -> float:
        """Returns the standard deviation, of the values themselves (not an estimate from a sample)."""
        return math.sqrt(max(self.squares, 0.0) / self.count)

    def quantiles(self) -> tuple[float, float]:
        """Returns the QUANTILES; interpolated between values, as np.quantile does, or within a bin."""
        if self.exponent is None:
            order = np.argsort(self.values, kind="stable")
            return _kept_quantiles(self.values[order].astype(np.float64), self.counts[order])
        ends = np.cumsum(self.counts)
        found = []
        for quantile in QUANTILES:
            target = quantile * ends[-1]
            i = int(np.searchsorted(ends, target, side="left"))
            part = 1.0 - (ends[i] - target) / self.counts[i]
            value = math.ldexp(self.first + i + part, self.exponent)
            found.append(min(max(value, self.low), self.high))
        return found[0], found[1]

    def _keep(self, values: np.ndarray, weights: np.ndarray) -> None:
        self.values = np.concatenate([self.values, values], dtype=np.float32)
        self.counts = np.concatenate([self.counts, weights])
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))


def _add_coarser(counts: np.ndarray, first: int, finer: np.ndarray, finer_first: int, shift: int) -> None:
    """Adds the counts of a grid to one whose bins are 2**shift times as wide."""
    used = np.flatnonzero(finer)
    counts += np.bincount(((used + finer_first) >> shift) - first, finer[used], minlength=len(counts))


def _kept_quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Returns the QUANTILES of ascending values, each standing for as many equal ones as its weight says."""
    ends = np.cumsum(weights)
    found = []
    for quantile in QUANTILES:
        rank = quantile * max(ends[-1] - 1, 0.0)
        at = np.searchsorted(ends, [math.floor(rank), math.floor(rank) + 1], side="right")
        below, above = values[np.minimum(at, len(values) - 1)]
        found.append(below + (above - below) * (rank - math.floor(rank)))
    return float(found[0]), float(found[1])
