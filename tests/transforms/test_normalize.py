import dataclasses
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.normalize import NEAR_CONSTANT, FieldStats, Normalize, NormStats, Unnormalize, near_constant

ROBOT = r1pro("like_action")


def stats_of(q01: np.ndarray, q99: np.ndarray, mean: np.ndarray, std: np.ndarray) -> NormStats:
    field = FieldStats(mean=mean, std=std, q01=q01, q99=q99)
    return NormStats(field, field)


def constant(size: int = 23, value: float = 0.7) -> NormStats:
    at = np.full(size, value)
    return stats_of(at, at, at, np.zeros(size))


@pytest.mark.parametrize("normalization", ["quantile", "zscore"])
def test_agrees_with_openpi(reference, norm_stats, normalization):
    sample = {"state": reference["b1k/out/state"], "actions": reference["b1k/in/actions"]}
    normalized = Normalize(norm_stats, normalization, clip=None)(sample)
    np.testing.assert_array_equal(normalized["state"], reference[f"norm/out/state_{normalization}"])
    if normalization == "quantile":
        np.testing.assert_array_equal(normalized["actions"], reference["norm/out/actions_quantile"])
        restored = Unnormalize(norm_stats, normalization)(normalized)["actions"]
        expected = reference["norm/out/actions_unnormalized_padded"]
        np.testing.assert_allclose(restored, expected[:, :23], atol=1e-12)
        assert not expected[:, 23:].any()


VALUES = arrays.arrays(np.float64, 23, elements=strategies.floats(-4, 4))


@hypothesis.given(low=VALUES, spread=arrays.arrays(np.float64, 23, elements=strategies.floats(0, 4)), values=VALUES)
@pytest.mark.parametrize("normalization", ["quantile", "zscore"])
def test_unnormalize_of_normalize_is_identity(low, spread, values, normalization):
    norm_stats = stats_of(low, low + spread, low + spread / 2, spread)
    sample = {"state": values, "actions": values[None]}
    normalized = Normalize(norm_stats, normalization, clip=None)(sample)
    np.testing.assert_allclose(Unnormalize(norm_stats, normalization)(normalized)["actions"], values[None], atol=1e-9)


@hypothesis.given(low=VALUES, spread=arrays.arrays(np.float64, 23, elements=strategies.floats(0, 4)))
def test_the_default_clip_moves_nothing_between_the_quantiles(low, spread):
    norm_stats = stats_of(low, low + spread, low, spread)
    inside = low + np.linspace(0, 1, 23) * spread
    normalized = Normalize(norm_stats, "quantile", clip=5.0)({"state": inside, "actions": inside[None]})
    assert (np.abs(normalized["state"]) <= 1 + 1e-9).all()
    np.testing.assert_allclose(Unnormalize(norm_stats, "quantile")(normalized)["actions"][0], inside, atol=1e-9)


def test_values_are_clipped(norm_stats):
    far = {"state": np.full(23, 1e3), "actions": np.full((4, 23), -1e3)}
    clipped = Normalize(norm_stats, "quantile", clip=5.0)(far)
    assert (clipped["state"] == 5).all()
    assert (clipped["actions"] == -5).all()
    assert (Normalize(norm_stats, "quantile", clip=None)(far)["state"] > 5).all()


@pytest.mark.parametrize(("normalization", "expected"), [("quantile", -1.0), ("zscore", 0.0)])
def test_an_entry_that_never_varied_does_not_explode(normalization, expected):
    normalize = Normalize(constant(), normalization, clip=None)
    noisy = normalize({"state": np.full(23, 0.7 + 1e-3)})["state"]
    np.testing.assert_allclose(noisy, expected + 1e-3)  # openpi: 1999 and 1000
    assert (normalize({"state": np.full(23, 0.7)})["state"] == expected).all()  # as in openpi


def test_a_checkpoint_that_saw_a_constant_entry_keeps_writing_it():
    prediction = {"actions": np.full((1, 23), -1.0)}  # what openpi trains the model to give for it
    np.testing.assert_array_equal(Unnormalize(constant(), "quantile")(prediction)["actions"], np.full((1, 23), 0.7))


def test_near_constant_entries_are_named():
    span = np.ones(23)
    span[1] = span[14] = NEAR_CONSTANT / 2
    norm_stats = stats_of(np.zeros(23), span, np.zeros(23), np.ones(23))
    names = ("base[1]", "left_gripper[0]")
    expected = (*(f"state.{name}" for name in names), *(f"actions.{name}" for name in names))
    assert near_constant(norm_stats, ROBOT, "quantile") == expected
    assert near_constant(norm_stats, ROBOT, "zscore") == ()


def test_json_round_trip_is_exact(norm_stats):
    back = NormStats.from_json(norm_stats.to_json())
    for name in ("mean", "std", "q01", "q99"):
        np.testing.assert_array_equal(getattr(back.state, name), getattr(norm_stats.state, name))
    assert list(json.loads(norm_stats.to_json())["norm_stats"]) == ["state", "actions"]


def padded(norm_stats: NormStats, value: float = 0.0) -> NormStats:
    field = FieldStats(*(np.append(array, [value] * 9) for array in dataclasses.astuple(norm_stats.state)))
    return NormStats(field, field)


def test_zero_padding_of_openpi_is_dropped(norm_stats):
    fitted = NormStats.from_json(padded(norm_stats).to_json()).for_robot(ROBOT)
    np.testing.assert_array_equal(fitted.state.q99, norm_stats.state.q99)
    assert fitted.actions.mean.shape == (23,)


@pytest.mark.parametrize(("norm_stats", "given"), [(constant(22), 22), (constant(32), 32)])
def test_statistics_of_another_robot_are_refused(norm_stats, given):
    with pytest.raises(ValueError, match=rf"state must have 23 entries, .*; got {given};.*compute_norm_stats"):
        norm_stats.for_robot(ROBOT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "state lacks 'norm_stats'"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1]}}}', "state lacks 'q01'"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": null, "q99": null}}}', "state hold no q01, q99"),
        ("no json", "Expecting value"),
    ],
)
def test_malformed_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        NormStats.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(22)}, "vectors of one size"),
        ({"std": np.full(23, np.nan)}, "must be finite; std"),
        ({"q99": np.full(23, -1.0)}, "q99 >= q01; not so in entries \\[0, 1"),
    ],
)
def test_impossible_statistics_are_refused(change, message):
    fields = {"mean": np.zeros(23), "std": np.ones(23), "q01": np.zeros(23), "q99": np.ones(23)}
    with pytest.raises(ValueError, match=message):
        FieldStats(**fields | change)


def test_statistics_by_step_scale_each_step_by_its_own():
    rng = np.random.default_rng(0)
    state = FieldStats(*(np.full(23, value) for value in (0.0, 1.0, -1.0, 1.0)))
    low = rng.standard_normal((4, 23))
    steps = FieldStats(low, np.ones((4, 23)), low, low + np.arange(1, 5)[:, None])
    stats = NormStats(state, steps)
    actions = rng.standard_normal((2, 4, 23))
    seen = Normalize(stats, "quantile", clip=None)({"state": np.zeros((2, 23)), "actions": actions})["actions"]
    for step in range(4):
        expected = (actions[:, step] - low[step]) / (step + 1 + 1e-6) * 2 - 1
        np.testing.assert_allclose(seen[:, step], expected, rtol=1e-12)
    back = Unnormalize(stats, "quantile")({"actions": seen})["actions"]
    np.testing.assert_allclose(back, actions, atol=1e-12)
    again = NormStats.from_json(stats.to_json()).for_robot(ROBOT)
    np.testing.assert_array_equal(again.actions.q99, steps.q99)
