import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving.resampling import moves_gripper, resample, spline_matrix

BASE, LEFT, RIGHT = (ACTION.slice(name) for name in ("base", "left_gripper", "right_gripper"))
JOINTS = np.ones(ACTION.size, bool)
JOINTS[BASE] = JOINTS[LEFT] = JOINTS[RIGHT] = False


def chunk(num_actions: int = 26) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_actions, ACTION.size)).astype(np.float32)


@pytest.mark.parametrize(("num_points", "num_steps"), [(26, 20), (4, 9), (5, 1), (20, 20), (8, 30)])
def test_the_spline_is_scipys_cubic_interpolation(num_points, num_steps):
    interpolate = pytest.importorskip("scipy.interpolate")
    values = np.random.default_rng(1).normal(size=(num_points, 3))
    spline = interpolate.interp1d(np.arange(num_points), values, kind="cubic", axis=0)
    expected = spline(np.linspace(0, num_points - 1, num_steps))
    np.testing.assert_allclose(spline_matrix(num_points, num_steps) @ values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_points", "num_steps"), [(26, 20), (4, 9)])
def test_cubic_polynomials_are_met_exactly(num_points, num_steps):
    def cubic(x):
        return 1 - 2 * x + 0.3 * x**2 - 0.02 * x**3

    values = spline_matrix(num_points, num_steps) @ cubic(np.arange(num_points))
    np.testing.assert_allclose(values, cubic(np.linspace(0, num_points - 1, num_steps)), rtol=1e-10)


def test_positions_are_interpolated_velocities_scaled_and_grippers_chosen():
    actions = chunk()
    fast = resample(actions, 20, ACTION)
    assert (fast.shape, fast.dtype) == ((20, ACTION.size), np.float32)
    spline = spline_matrix(26, 20) @ actions.astype(np.float64)
    np.testing.assert_allclose(fast[:, JOINTS], spline[:, JOINTS], atol=1e-6)
    np.testing.assert_allclose(fast[:, BASE], spline[:, BASE] * 26 / 20, atol=1e-6)
    for gripper in (LEFT, RIGHT):
        for step in range(20):
            distances = np.abs(np.arange(26) - step * 25 / 19)
            np.testing.assert_array_equal(fast[step, gripper], actions[distances.argmin(), gripper])


def test_the_base_goes_as_far_in_less_time():
    actions = np.zeros((26, ACTION.size), np.float32)
    actions[:, BASE] = 0.5
    fast = resample(actions, 20, ACTION)
    np.testing.assert_allclose(fast[:, BASE].sum(axis=0), actions[:, BASE].sum(axis=0), rtol=1e-6)


def test_ends_stay_and_as_many_steps_change_nothing():
    actions = chunk()
    fast = resample(actions, 20, ACTION)
    np.testing.assert_allclose(fast[[0, -1]][:, JOINTS], actions[[0, -1]][:, JOINTS], atol=1e-6)
    np.testing.assert_allclose(resample(actions, 26, ACTION), actions, atol=1e-6)


def test_a_gripper_moves_if_its_command_varies_by_more_than_a_fifth():
    for gripper in (LEFT, RIGHT):
        actions = chunk()
        actions[:, LEFT] = actions[:, RIGHT] = 1.0
        actions[7, gripper] = 0.81
        assert not moves_gripper(actions, ACTION)
        actions[20, gripper] = 1.02
        assert moves_gripper(actions, ACTION)


@pytest.mark.parametrize(("num_points", "num_steps"), [(3, 2), (5, 0)])
def test_too_few_points_or_steps_are_refused(num_points, num_steps):
    with pytest.raises(ValueError, match=f"at least 4 points and one step; got {num_points} and {num_steps}"):
        spline_matrix(num_points, num_steps)
