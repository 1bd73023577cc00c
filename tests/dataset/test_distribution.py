"""One number's distribution: merging, bins and awkward values."""

import numpy as np
import pytest

from openpi_b1k.data.statistics.distribution import Distribution
from openpi_b1k.data.statistics.summary import of_rows


def test_merging_order_changes_no_count():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(200_000) * 10.0 ** rng.integers(-3, 2, 200_000)).astype(np.float32)
    weights = rng.integers(1, 33, len(values))
    whole = Distribution()
    whole.update(values, weights)
    for order in (1, -1):
        merged = Distribution()
        for part, weight in list(zip(np.array_split(values, 9), np.array_split(weights, 9), strict=True))[::order]:
            other = Distribution()
            other.update(part, weight)
            merged.merge(other)
        assert (merged.exponent, merged.first) == (whole.exponent, whole.first)
        np.testing.assert_array_equal(merged.counts, whole.counts)
        assert merged.std() == pytest.approx(whole.std(), rel=1e-12)
    truth = np.quantile(np.repeat(values, weights).astype(np.float64), (0.01, 0.99))
    np.testing.assert_allclose(whole.quantiles(), truth, atol=2.5e-4 * np.ptp(values))


def test_constants_and_denormals_are_what_they_are():
    for value in (0.3, 0.0, -7.0, 1e-45):
        constant = Distribution()
        constant.update(np.full(100_000, value, np.float32))
        assert constant.quantiles() == (np.float32(value), np.float32(value))
        assert constant.std() < 1e-12


def test_variance_survives_a_large_offset():
    rows = (np.random.default_rng(0).standard_normal((1000, 2)) * 1e-1 + 1e4).astype(np.float32)
    np.testing.assert_allclose(of_rows(rows).std, rows.astype(np.float64).std(0), rtol=1e-9)
