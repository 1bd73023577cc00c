"""Intervals against published values, exact cases, and how often they hold the truth, counted exactly."""

import itertools
import math

import numpy as np
import pytest

from openpi_b1k.rollouts import intervals


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(successes, n, low, high):
    """Source: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(3, 10, 0.95), (48, 50, 0.95), (7, 8, 0.9), (2, 40, 0.99)])
def test_wilsons_ends_are_where_the_score_test_just_rejects(successes, n, confidence):
    """Its definition: an end is a rate that is z standard errors, its own, away from the rate seen."""
    z = {0.9: 1.6448536, 0.95: 1.9599640, 0.99: 2.5758293}[confidence]
    for rate in intervals.wilson(successes, n, confidence):
        assert abs(successes / n - rate) / math.sqrt(rate * (1 - rate) / n) == pytest.approx(z, rel=1e-6)


def test_wilson_mirrors_failures_and_stays_inside():
    assert intervals.wilson(0, 5).low == pytest.approx(0, abs=1e-12)
    assert intervals.wilson(5, 5).high == pytest.approx(1, abs=1e-12)
    low, high = intervals.wilson(2, 9)
    assert intervals.wilson(7, 9) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4), (float("nan"), 4)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="at least one rollout, and no more successes"):
        intervals.wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, float("nan")])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match=r"it is in \(0, 1\), such as 0.95"):
        intervals.wilson(1, 2, confidence)


def test_the_interval_of_a_mean_depends_on_the_mean_alone():
    assert intervals.mean_interval([0.5] * 10) == intervals.wilson(5, 10)
    assert intervals.mean_interval([0.0] * 10) == intervals.wilson(0, 10)


@pytest.mark.parametrize("scores", [[], [0.5, 1.1], [float("nan")], [-0.1]])
def test_the_interval_of_a_mean_refuses_what_is_no_score(scores):
    with pytest.raises(ValueError, match=r"at least one, and each in \[0, 1\]"):
        intervals.mean_interval(scores)


@pytest.mark.parametrize("counts", [(12, 3, 25), (0, 0, 5), (7, 7, 0), (50, 0, 0)])
def test_paired_is_bonett_and_prices_interval_for_successes(counts):
    """Their formula by cells: won, lost and tied pairs, one more of each of the first two."""
    won, lost, tied = counts
    n = won + lost + tied
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = 1.9599640 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    found = intervals.paired([1.0] * won + [-1.0] * lost + [0.0] * tied)
    assert found == pytest.approx(((won - lost) / n, max(-1, p - q - half), min(1, p - q + half), n), rel=1e-6)
    assert found.low <= found.mean <= found.high


def test_paired_holds_the_truth_as_often_as_it_says():
    """Every outcome of 12 pairs with its probability, for many true rates of won and lost pairs."""
    n, covered = 12, []
    outcomes = [(won, lost) for won in range(n + 1) for lost in range(n + 1 - won)]
    found = {(won, lost): intervals.paired([1] * won + [-1] * lost + [0] * (n - won - lost)) for won, lost in outcomes}
    for p, q in itertools.product(np.arange(0.05, 1, 0.15), repeat=2):
        if p + q < 1:
            covered.append(
                sum(
                    math.factorial(n)
                    / (math.factorial(won) * math.factorial(lost) * math.factorial(n - won - lost))
                    * p**won
                    * q**lost
                    * (1 - p - q) ** (n - won - lost)
                    for won, lost in outcomes
                    if found[won, lost].low <= p - q <= found[won, lost].high
                )
            )
    assert min(covered) > 0.92
    assert 0.94 < np.mean(covered) < 0.99


def test_paired_tells_a_clear_difference_from_none():
    assert intervals.paired([0.5, 0.4, 0.6, 0.5] * 10).is_clear
    assert intervals.paired([-1.0] * 20).is_clear
    assert not intervals.paired([0.0] * 40).is_clear
    assert not intervals.paired([1.0, -1.0] * 10).is_clear


@pytest.mark.parametrize("differences", [[], [1.5], [float("nan"), 0.0]])
def test_paired_refuses_what_is_no_difference_of_scores(differences):
    with pytest.raises(ValueError, match=r"at least one pair, and each in \[-1, 1\]"):
        intervals.paired(differences)


def test_pairs_needed_are_about_enough():
    seen = [1.0] * 6 + [-1.0] * 4 + [0.0] * 10
    needed = intervals.pairs_needed(seen)
    assert needed is not None
    repeats = needed // len(seen)
    assert not intervals.paired(seen * (repeats * 3 // 4)).is_clear
    assert intervals.paired(seen * (repeats * 5 // 4)).is_clear


def test_no_number_of_pairs_tells_no_difference():
    assert intervals.pairs_needed([1.0, -1.0]) is None
    assert intervals.pairs_needed([0.01] * 3) == 4  # no spread: one more than there are, since these were not enough
