import numpy as np
import pytest

from openpi_b1k.serving import inpainting

HORIZON, ENTRIES, KEPT = 5, 3, 2
SIZE, OBSERVED = HORIZON * ENTRIES, KEPT * ENTRIES


def correlation() -> np.ndarray:
    """Returns the correlation of random walks of which the last entry never moves."""
    walks = np.random.default_rng(0).normal(size=(400, HORIZON, ENTRIES)).cumsum(axis=1).reshape(400, SIZE)
    found = np.corrcoef(walks, rowvar=False)
    for index in range(ENTRIES - 1, SIZE, ENTRIES):
        found[index, :] = found[:, index] = np.eye(SIZE)[index]
    return found


def saved(tmp_path, array) -> str:
    np.save(tmp_path / "correlation.npy", array)
    return str(tmp_path / "correlation.npy")


def test_the_gain_is_the_best_linear_prediction_of_the_later_entries():
    sigma = correlation()
    gain = inpainting.gain(sigma, KEPT, ENTRIES)
    assert (gain.shape, gain.dtype) == ((SIZE - OBSERVED, OBSERVED), np.float32)
    expected = sigma[OBSERVED:, :OBSERVED] @ np.linalg.pinv(sigma[:OBSERVED, :OBSERVED])
    np.testing.assert_allclose(gain, expected, atol=1e-4)
    assert np.abs(gain).max() > 0.5
    # What is left after the prediction is uncorrelated with what was observed.
    residual = sigma[OBSERVED:, :OBSERVED] - gain @ sigma[:OBSERVED, :OBSERVED]
    assert np.abs(residual).max() < 1e-4


def test_entries_that_never_move_neither_follow_nor_lead():
    gain = inpainting.gain(correlation(), KEPT, ENTRIES).reshape(HORIZON - KEPT, ENTRIES, KEPT, ENTRIES)
    assert not gain[:, -1].any()
    assert not gain[..., -1].any()


def test_independent_entries_have_no_gain_and_equal_ones_stay_finite():
    assert not inpainting.gain(np.eye(SIZE), KEPT, ENTRIES).any()
    gain = inpainting.gain(np.ones((SIZE, SIZE)), KEPT, ENTRIES)
    np.testing.assert_allclose(gain.sum(axis=1), 1, atol=1e-5)  # the regularisation makes a singular matrix solvable


@pytest.mark.parametrize("num_kept", [0, HORIZON])
def test_keeping_nothing_or_everything_is_refused(num_kept):
    with pytest.raises(ValueError, match=f"at least 1 and fewer than the chunk's 5; got {num_kept}"):
        inpainting.gain(np.eye(SIZE), num_kept, ENTRIES)


def test_a_stored_correlation_comes_back(tmp_path):
    sigma = correlation().astype(np.float32)
    read = inpainting.read_correlation(saved(tmp_path, sigma), HORIZON, ENTRIES)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, sigma)


def changed(row, column, value):
    sigma = correlation()
    sigma[row, column] = value
    return sigma


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.eye(SIZE - 1), r"must hold floats \[15, 15\], 5 steps of 3 entries; got float64 \[14, 14\]"),
        (np.eye(SIZE, dtype=int), r"got int64 \[15, 15\]"),
        (changed(2, 2, np.nan), "holds NaN or infinity"),
        (changed(0, 1, 0.9), "must be symmetric with ones on its diagonal; .* transpose by up to 0"),
        (2 * correlation(), "from ones by up to 1"),
        (np.array([{}]), "is no .npy file of numbers: Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_correlation_is_refused(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        inpainting.read_correlation(saved(tmp_path, array), HORIZON, ENTRIES)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    (tmp_path / "file.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no .npy file of numbers"):
        inpainting.read_correlation(tmp_path / "file.npy", HORIZON, ENTRIES)


def test_an_archive_is_refused(tmp_path):
    np.savez(tmp_path / "file.npz", correlation())
    with pytest.raises(ValueError, match="got an archive"):
        inpainting.read_correlation(tmp_path / "file.npz", HORIZON, ENTRIES)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no chunk correlation at .*; leave the setting out"):
        inpainting.read_correlation(tmp_path / "none.npy", HORIZON, ENTRIES)
