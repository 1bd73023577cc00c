"""What soft inpainting needs besides the kept actions: how the later actions of a chunk follow the first ones.

The correlation of normalised action chunks is a statistic of the training data that no script of this package computes
yet: it is an optional file. Without it the later actions are not corrected, as if all entries were independent.
"""

import pathlib

import numpy as np

REGULARIZATION = 1e-6
SYMMETRY_TOLERANCE = 1e-4


def read_correlation(path: pathlib.Path | str, action_horizon: int, num_entries: int) -> np.ndarray:
    """Returns the correlation of normalised chunks, float64 [n, n] with n = action horizon * entries.

    Args:
        path: a .npy file with one matrix of real numbers. Row and column `step * entries + entry` are one entry of the
            action at one step, after deltas and normalisation; entries that never vary have 1 on the diagonal, else 0.
        action_horizon: actions per chunk.
        num_entries: entries of the robot's action, without padding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npy file, or holds no correlation of chunks of that size.
    """
    try:
        correlation = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no chunk correlation at {path}; leave the setting out, and later actions are not corrected"
        ) from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    size = action_horizon * num_entries
    if not isinstance(correlation, np.ndarray) or correlation.dtype.kind != "f" or correlation.shape != (size, size):
        described = (
            f"{correlation.dtype} {[*correlation.shape]}" if isinstance(correlation, np.ndarray) else "an archive"
        )
        raise ValueError(
            f"{path} must hold floats [{size}, {size}], {action_horizon} steps of {num_entries} entries; "
            f"got {described}"
        )
    correlation = correlation.astype(np.float64)
    if not np.isfinite(correlation).all():
        raise ValueError(f"the chunk correlation at {path} holds NaN or infinity")
    asymmetry, off_one = np.abs(correlation - correlation.T).max(), np.abs(np.diag(correlation) - 1).max()
    if max(asymmetry, off_one) > SYMMETRY_TOLERANCE:
        raise ValueError(
            f"the chunk correlation at {path} must be symmetric with ones on its diagonal; it differs from its "
            f"transpose by up to {asymmetry:.2g} and from ones by up to {off_one:.2g}"
        )
    return correlation


def gain(correlation: np.ndarray, num_kept: int, num_entries: int) -> np.ndarray:
    """Returns what the later entries move by per change of the kept ones, float32 [u, o]: Sigma_UO Sigma_OO^-1.

    Args:
        correlation: of normalised chunks [n, n], steps before entries, as `read_correlation` returns it.
        num_kept: steps kept; o = num_kept * num_entries, u = n - o.
        num_entries: entries of the robot's action.

    Raises:
        ValueError: nothing or everything would be kept.
    """
    num_observed = num_kept * num_entries
    if not 0 < num_observed < len(correlation):
        horizon = len(correlation) // num_entries
        raise ValueError(f"kept actions must be at least 1 and fewer than the chunk's {horizon}; got {num_kept}")
    observed = correlation[:num_observed, :num_observed]
    regularization = REGULARIZATION * max(float(np.mean(np.diag(observed))), 1.0)
    observed = observed + regularization * np.eye(num_observed)
    return np.linalg.solve(observed, correlation[:num_observed, num_observed:]).T.astype(np.float32)
