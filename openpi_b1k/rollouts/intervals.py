"""Confidence intervals for few rollouts: of a success rate, of a mean score, and of a difference between two policies.

Rollouts are few and often all alike, so each interval here keeps a width when every rollout ended the same way.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """The ends of a two-sided confidence interval."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of differences pair by pair, the ends of its confidence interval, and how many pairs there were."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether no difference at all is outside the interval."""
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of a success rate, within [0, 1].

    Args:
        successes: how many of `n`; a sum of scores in [0, 1] may stand for it, see `mean_interval`.
        n: how many rollouts, at least one.
        confidence: how often such intervals hold the true rate, in (0, 1).

    Raises:
        ValueError: there is no rollout, or an argument is out of its range.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"got {successes} successes of {n}; an interval needs at least one rollout, and no more successes"
        )
    z = _normal_quantile(confidence)
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns an interval of the mean of scores in [0, 1], such as q: Wilson's, with the mean as the rate.

    Scores in [0, 1] vary at most as much as successes with the same mean, so it is never too narrow for that reason.
    Student's interval would have no width for the usual ten rollouts that all score 0.

    Raises:
        ValueError: there is no score, or one is not in [0, 1].
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0 or not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError(f"got scores {list(values)}; an interval needs at least one, and each in [0, 1]")
    return wilson(float(scores.sum()), scores.size, confidence)


def paired(differences: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Returns the mean difference of pairs of scores in [0, 1], with an interval.

    The interval is the adjusted Wald interval for paired proportions: that of the pairs and two more, one of difference
    +1 and one of -1. It is theirs for successes; for scores between, the two make it wider than need be with few pairs.

    Args:
        differences: the one's score minus the other's on the same instance, each in [-1, 1].
        confidence: how often such intervals hold the true difference, in (0, 1).

    Raises:
        ValueError: there is no pair, or a difference is not in [-1, 1].

    Source: Bonett and Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not np.all(np.abs(values) <= 1):
        raise ValueError(f"got differences {list(differences)}; give at least one pair, and each in [-1, 1]")
    n = values.size + 2
    centre = float(values.sum()) / n
    variance = (float(np.square(values).sum()) + 2) / n - centre**2
    half = _normal_quantile(confidence) * math.sqrt(variance / n)
    return PairedDifference(float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half), values.size)


def pairs_needed(differences: Sequence[float], confidence: float = 0.95) -> int | None:
    """Returns about how many pairs like these would tell their mean from 0, or None where that mean is 0.

    Raises:
        ValueError: as of `paired`.
    """
    mean = paired(differences, confidence).mean
    if mean == 0:
        return None
    spread = statistics.fmean(np.square(differences)) - mean**2
    return max(len(differences) + 1, math.ceil(_normal_quantile(confidence) ** 2 * spread / mean**2))


def _normal_quantile(confidence: float) -> float:
    """Returns how many standard deviations each side of a normal mean hold this share."""
    if not 0 < confidence < 1:
        raise ValueError(f"got confidence {confidence}; it is in (0, 1), such as 0.95")
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)
