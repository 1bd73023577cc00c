"""Which source comes when: shares by weight, every draw counted, spread over time and lanes."""

import numpy as np
import pytest

from openpi_b1k.data.order.interleave import PERIOD, Interleave, largest_remainder
from openpi_b1k.data.order.lanes import LANES

WEIGHTS = [(1,), (1, 1), (3, 1), (0.7, 0.2, 0.1), (1000, 1, 30, 5)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_lane_draws_each_source_by_weight_and_counts_its_draws(weights):
    interleave = Interleave(weights)
    shares = np.array(weights) / np.sum(weights)
    np.testing.assert_allclose(interleave.counts / PERIOD, shares, atol=1 / PERIOD)
    for lane in (0, 1, 17, LANES - 1):
        drawn = np.zeros(len(weights), int)
        for m in range(2 * PERIOD):
            source, before = interleave.draw(lane, m)
            assert before == drawn[source]
            drawn[source] += 1
            assert np.abs(drawn - shares * (m + 1)).max() <= len(weights)  # spread evenly at every moment
        np.testing.assert_array_equal(drawn, 2 * interleave.counts)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_batch_has_the_shares_too(weights):
    interleave = Interleave(weights)
    for m in range(0, PERIOD, 100):
        batch = [interleave.draw(lane, m + k)[0] for lane in range(LANES) for k in range(4)]
        counts = np.bincount(batch, minlength=len(weights))
        assert np.abs(counts - 256 * np.array(weights) / np.sum(weights)).max() <= 8


def test_far_positions_are_found_at_once():
    interleave = Interleave((3, 1))
    assert interleave.draw(0, PERIOD * 10**9) == (interleave.draw(0, 0)[0], 10**9 * int(interleave.counts[0]))


def test_largest_remainder():
    assert largest_remainder([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert largest_remainder([5, 3, 2], 10).tolist() == [5, 3, 2]
    assert largest_remainder([0.6, 0.25, 0.15], 4).tolist() == [2, 1, 1]


def test_a_source_that_would_never_come_is_refused():
    with pytest.raises(ValueError, match=r"source 1 of the mixture has weight 1 of 10001; .* is 1/4096"):
        Interleave((10000, 1))
