"""The order of samples: a bijection per epoch, pure in (seed, n)."""

import numpy as np
import pytest

from openpi_b1k.data.order.permutation import derive_seed, sample_index, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 97, 1000, 1024, 65537])
def test_every_epoch_holds_every_sample_once(size):
    for epoch in (0, 1, 5):
        order = sample_index(3, np.arange(epoch * size, (epoch + 1) * size), size)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_epochs_and_seeds_differ():
    n = np.arange(1000)
    orders = [sample_index(seed, n + epoch * 1000, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        assert (one != np.arange(1000)).mean() > 0.98
        for other in orders[:i]:
            assert (one != other).mean() > 0.98


def test_position_alone_decides():
    size = 37
    n = np.arange(5 * size)
    whole = sample_index(7, n, size)
    np.testing.assert_array_equal(np.concatenate([sample_index(7, part, size) for part in np.split(n, 5)]), whole)
    np.testing.assert_array_equal([int(sample_index(7, int(i), size)) for i in n], whole)
    assert sample_index(7, n.reshape(5, size), size).shape == (5, size)


def test_first_positions_are_spread_evenly():
    size, epochs = 1000, 2000
    n = np.arange(epochs)[:, None] * size + np.arange(10)
    counts, _ = np.histogram(sample_index(0, n, size), bins=20, range=(0, size))
    # Each of 20 bins expects 1000 of 20,000 draws with a standard deviation of 31.
    assert np.abs(counts - 1000).max() < 5 * 31


def test_neighbouring_positions_are_unrelated():
    order = sample_index(0, np.arange(10_000), 10_000).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_full_size_needs_no_memory():
    size = 210_916_774
    order = sample_index(0, np.arange(100_000) + 3 * size, size)
    assert len(np.unique(order)) == 100_000
    assert order.min() >= 0
    assert order.max() < size


def test_refusals():
    with pytest.raises(ValueError, match="at least 1 sample; got size 0"):
        sample_index(0, 0, 0)
    with pytest.raises(ValueError, match="must not be negative; got -1"):
        sample_index(0, np.array([3, -1]), 10)


def test_derived_seeds_differ_and_never_change():
    seeds = {derive_seed(seed, source, epoch) for seed in range(10) for source in range(10) for epoch in range(-5, 5)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0
    assert max(seeds) < 2**64
    assert derive_seed(0, 1) != derive_seed(1, 0)
    assert derive_seed(7, 0, 3) == 10708298494405339913  # another value would be another order of every run


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_shuffled(size):
    np.testing.assert_array_equal(np.sort(shuffled(3, size)), np.arange(size))
