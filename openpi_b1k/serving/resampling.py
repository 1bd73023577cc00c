"""A chunk executed faster: n actions in m steps, as cubic splines of the positions."""

import functools

import numpy as np

from openpi_b1k.robots.chunk_errors import is_gripper
from openpi_b1k.robots.layout import Layout

VELOCITY_FIELDS = ("base",)
"""Fields whose command is a velocity: executed in less time, the same way needs a higher one."""
MAX_GRIPPER_CHANGE = 0.2
MIN_SPLINE_POINTS = 4  # below, the not-a-knot conditions do not determine the spline


def moves_gripper(actions: np.ndarray, layout: Layout) -> bool:
    """Returns whether a gripper's command varies by more than 0.2 within `actions` [n, a]."""
    grippers = [actions[:, layout.slice(name)] for name in layout.names if is_gripper(name)]
    return any(bool((np.ptp(gripper, axis=0) > MAX_GRIPPER_CHANGE).any()) for gripper in grippers)


def resample(actions: np.ndarray, num_steps: int, layout: Layout) -> np.ndarray:
    """Returns `actions` [n, a] as `num_steps` actions, float32, the first and the last at their places.

    Positions follow the cubic spline through them, velocities as well and are multiplied by n / num_steps, and grippers
    take the nearest action's value. Commands are not limited to the robot's range.

    Raises:
        ValueError: there are fewer than four actions, or fewer than one step.

    Source: BEHAVIOR-1K challenge 2025, the winner's evaluation wrapper (26 actions in 20 steps).
    """
    num_actions = len(actions)
    resampled = spline_matrix(num_actions, num_steps) @ actions.astype(np.float64)
    nearest = np.rint(sample_points(num_actions, num_steps)).astype(int)
    for name in layout.names:
        entries = layout.slice(name)
        if name in VELOCITY_FIELDS:
            resampled[:, entries] *= num_actions / num_steps
        elif is_gripper(name):
            resampled[:, entries] = actions[nearest, entries]
    return resampled.astype(np.float32)


def sample_points(num_points: int, num_steps: int) -> np.ndarray:
    """Returns `num_steps` places spread evenly over [0, num_points - 1]."""
    return np.linspace(0, num_points - 1, num_steps)


@functools.cache
def spline_matrix(num_points: int, num_steps: int) -> np.ndarray:
    """Returns the matrix [num_steps, num_points] from values at 0, 1, ... to their cubic spline at `sample_points`.

    The spline is the one with not-a-knot ends, which reproduces every cubic polynomial. With M its second derivatives
    at the points, M[i-1] + 4 M[i] + M[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]), and the third derivative does not
    jump at the second and the last but one point.

    Raises:
        ValueError: there are fewer than four points, or fewer than one step.
    """
    if num_points < MIN_SPLINE_POINTS or num_steps < 1:
        raise ValueError(
            f"a spline needs at least {MIN_SPLINE_POINTS} points and one step; got {num_points} and {num_steps}"
        )
    system, right = np.zeros((2, num_points, num_points))
    for row in range(1, num_points - 1):
        system[row, row - 1 : row + 2] = 1, 4, 1
        right[row, row - 1 : row + 2] = 6, -12, 6
    system[0, :3] = system[-1, -3:] = 1, -2, 1
    second_derivatives = np.linalg.solve(system, right)

    places = sample_points(num_points, num_steps)
    left = np.minimum(places.astype(int), num_points - 2)
    after = (places - left)[:, None]
    before = 1 - after
    identity = np.eye(num_points)
    matrix = before * identity[left] + after * identity[left + 1]
    matrix += (before**3 - before) / 6 * second_derivatives[left]
    matrix += (after**3 - after) / 6 * second_derivatives[left + 1]
    matrix.flags.writeable = False  # it is cached
    return matrix
