"""Errors of action chunks against loops over their entries."""

import numpy as np
import pytest

from openpi_b1k.robots.chunk_errors import ErrorSums, step_errors
from openpi_b1k.robots.layout import Field, Layout

LAYOUT = Layout((Field("base", 2, "1"), Field("left_gripper", 1, "1: +1 open, -1 closed"), Field("arm", 3, "rad")))


def chunks(n=5, horizon=9, seed=0):
    rng = np.random.default_rng(seed)
    true, predicted = rng.normal(size=(2, n, horizon, LAYOUT.size)).astype(np.float32)
    mask = np.arange(horizon) < rng.integers(1, horizon + 1, size=(n, 1))
    return true, predicted, mask


def test_errors_and_means_equal_loops_over_entries():
    true, predicted, mask = chunks()
    errors = step_errors(LAYOUT, true, predicted)
    assert errors.shape == (5, 3, 9)
    base, gripper, arm = [], [], []
    for n in range(5):
        for step in range(9):
            one, other = true[n, step].tolist(), predicted[n, step].tolist()
            distances = [abs(a - b) for a, b in zip(one, other, strict=True)]
            expected = [sum(distances[:2]) / 2, float((one[2] > 0) != (other[2] > 0)), sum(distances[3:]) / 3]
            np.testing.assert_allclose(errors[n, :, step], expected, rtol=1e-12)
            if mask[n, step]:
                base.append(expected[0])
                gripper.append(1 - expected[1])
                arm.append(expected[2])
    named = ErrorSums.of(errors, mask).named(LAYOUT)
    assert named["base"] == pytest.approx(sum(base) / len(base), rel=1e-12)
    assert named["left_gripper_accuracy"] == pytest.approx(sum(gripper) / len(gripper), rel=1e-12)
    assert named["arm"] == pytest.approx(sum(arm) / len(arm), rel=1e-12)


def test_padded_steps_do_not_count_whatever_they_hold():
    true, predicted, mask = chunks()
    assert not mask.all()
    before = ErrorSums.of(step_errors(LAYOUT, true, predicted), mask).named(LAYOUT)
    predicted[~mask] = np.nan
    assert ErrorSums.of(step_errors(LAYOUT, true, predicted), mask).named(LAYOUT) == before


def test_each_step_has_the_mean_of_the_chunks_that_have_it():
    true = np.zeros((2, 9, LAYOUT.size), np.float32)
    predicted = true.copy()
    predicted[0, :, 3:] = 1.0  # rad
    predicted[1, :, 3:] = 3.0
    mask = np.ones((2, 9), bool)
    mask[1, 4:] = False
    sums = ErrorSums.of(step_errors(LAYOUT, true, predicted), mask)
    np.testing.assert_array_equal(sums.by_step()[2], [2, 2, 2, 2, 1, 1, 1, 1, 1])
    named = sums.named(LAYOUT)
    assert {name for name in named if name.startswith("arm")} == {"arm", "arm/step_1", "arm/step_8", "arm/step_9"}
    assert (named["arm/step_1"], named["arm/step_8"], named["arm/step_9"]) == (2.0, 1.0, 1.0)
    assert named["arm"] == pytest.approx((4 * 2 * 2 + 5) / 13)
    assert named["left_gripper_accuracy"] == 1.0


def test_steps_that_no_chunk_has_are_left_out():
    true, predicted, mask = chunks()
    mask[:, 7:] = False
    sums = ErrorSums.of(step_errors(LAYOUT, true, predicted), mask)
    assert np.isnan(sums.by_step()[:, 7:]).all()
    assert [name for name in sums.named(LAYOUT) if name.startswith("arm/")] == ["arm/step_1"]
    with pytest.raises(ValueError, match="no step of any chunk counts"):
        ErrorSums.of(step_errors(LAYOUT, true, predicted), np.zeros_like(mask)).named(LAYOUT)


def test_sums_of_parts_are_those_of_the_whole():
    true, predicted, mask = chunks(n=6)
    errors = step_errors(LAYOUT, true, predicted)
    whole = ErrorSums.of(errors, mask)
    parts = [ErrorSums.of(errors[rows], mask[rows]) for rows in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(sum(part.sums for part in parts), whole.sums, rtol=1e-12)
    np.testing.assert_array_equal(sum(part.counts for part in parts), whole.counts)


def test_a_prediction_that_is_no_number_shows():
    true, predicted, mask = chunks()
    predicted[0, 0] = np.nan
    named = ErrorSums.of(step_errors(LAYOUT, true, predicted), mask).named(LAYOUT)
    assert np.isnan([named["base"], named["arm"], named["left_gripper_accuracy"]]).all()


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4), (1, 4, 6)])
def test_chunks_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must both be \[n, action horizon, 6\]; got \[2, 4, 6\] and"):
        step_errors(LAYOUT, np.zeros((2, 4, 6)), np.zeros(shape))
