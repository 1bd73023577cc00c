"""Statistics against NumPy loops over every frame and every step."""

import dataclasses
import json

import numpy as np
import pytest

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data import norm_stats
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.formats import open_index
from openpi_b1k.data.norm_stats import RunningStats, cached_path, compute, count_steps, load_or_compute, table
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.b1k import extract_state
from tests.dataset.dataset_cases import make_config

STATISTICS = ("mean", "std", "q01", "q99")


def oracle(rows):
    rows = np.asarray(rows, np.float64)
    q01, q99 = np.percentile(rows, [1, 99], axis=0)
    return {"mean": rows.mean(0), "std": rows.std(0), "q01": q01, "q99": q99}


def loops(index, columns, robot, delta_fields, horizon):
    """Returns every state and every real step of every chunk, as training sees them."""
    states, steps = [], []
    for row in range(len(index.lengths)):
        proprio, actions = columns.episode(row)
        state = extract_state(robot, proprio)
        states.extend(state)
        for frame in range(len(actions)):
            for step in range(frame, min(frame + horizon, len(actions))):
                action = actions[step].copy()
                for name in delta_fields:
                    action[robot.action.slice(name)] -= state[frame][robot.state.slice(name)]
                steps.append(action)
    return states, steps


@pytest.fixture
def data(root, config):
    index = open_index(root, config.data)
    return index, Columns(index, 23)


@pytest.mark.parametrize("delta_fields", [(), ("torso", "left_arm", "right_arm")])
def test_statistics_are_those_of_every_real_step(data, generation, delta_fields, monkeypatch):
    monkeypatch.setattr(norm_stats, "BLOCK_FRAMES", 100)  # several blocks per episode
    layout = "grippers_last" if generation == "2025" else "like_action"
    transforms = TransformConfig(state_layout=layout, delta_fields=delta_fields)
    robot = r1pro(layout)
    stats = compute(*data, transforms, robot, 8)
    states, steps = loops(*data, robot, delta_fields, 8)
    for field, expected in ((stats.state, oracle(states)), (stats.actions, oracle(steps))):
        for name in STATISTICS:
            np.testing.assert_allclose(getattr(field, name), expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_steps_are_counted():
    for lengths in ([1], [2, 5], [3, 30, 7]):
        for horizon in (1, 2, 5, 50):
            counted = sum(min(horizon, length - frame) for length in lengths for frame in range(length))
            assert count_steps(np.array(lengths), horizon) == counted
    assert count_steps(np.array([5]), 3) == 12


def test_quantiles_are_nearer_the_truth_than_openpis(data_dir):
    with np.load(data_dir / "b1k_transforms.npz") as file:
        reference = dict(file)
    samples = reference["norm/in/samples"]
    stats = RunningStats(len(samples))
    for part in np.array_split(samples, 7):
        stats.update(part)
    ours, truth = stats.result(), oracle(samples)
    for name in ("q01", "q99"):
        error = np.abs(getattr(ours, name) - truth[name])
        assert (error <= np.abs(reference[f"norm/out/{name}"] - truth[name])).all()
        np.testing.assert_allclose(error, 0, atol=1e-6)
    np.testing.assert_allclose(ours.mean, truth["mean"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.std, truth["std"], rtol=1e-12)


def test_variance_survives_a_large_offset():
    rows = np.random.default_rng(0).standard_normal((1000, 2)) * 1e-3 + 1e4
    stats = RunningStats(1000)
    for part in np.array_split(rows, 10):
        stats.update(part)
    np.testing.assert_allclose(stats.result().std, rows.std(0), rtol=1e-6)


def test_a_subsample_stands_for_many_rows():
    rows = np.random.default_rng(0).random((200_000, 3))
    stats = RunningStats(len(rows), max_rows=50_000)
    for part in np.array_split(rows, 10):
        stats.update(part)
    result = stats.result()
    assert abs(sum(len(part) for part in stats._kept) - 50_000) < 1000  # noqa: SLF001
    np.testing.assert_allclose(result.q01, 0.01, atol=0.0015)
    np.testing.assert_allclose(result.q99, 0.99, atol=0.0015)
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=1e-12)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no statistics of no rows"):
        RunningStats(0).result()


def test_statistics_are_kept_and_read(data, monkeypatch):
    robot, transforms = r1pro("like_action"), TransformConfig()
    stats, path = load_or_compute(*data, transforms, robot, 4)
    assert path == cached_path(data[0], transforms, 4)
    assert json.loads(path.read_text()).keys() == {"norm_stats"}
    monkeypatch.setattr(norm_stats, "compute", None)  # the second time nothing is computed
    again, _ = load_or_compute(*data, transforms, robot, 4)
    for name in STATISTICS:
        np.testing.assert_array_equal(getattr(again.state, name), getattr(stats.state, name))
        np.testing.assert_array_equal(getattr(again.actions, name), getattr(stats.actions, name))
    assert not list(path.parent.glob("*.json.*"))


def test_what_changes_the_statistics_changes_their_place(data_dir):
    config = make_config("2026", None)
    index = open_index(data_dir / "lerobot_v30", config.data)
    one_task = open_index(data_dir / "lerobot_v30", dataclasses.replace(config.data, tasks=("turning_on_radio",)))
    transforms = TransformConfig()
    places = [
        cached_path(index, transforms, 16),
        cached_path(one_task, transforms, 16),
        cached_path(index, transforms, 8),
        cached_path(index, dataclasses.replace(transforms, state_layout="grippers_last"), 16),
        cached_path(index, dataclasses.replace(transforms, delta_fields=("torso",)), 16),
    ]
    assert len(set(places)) == len(places)
    for same in ({"clip_normalized": None}, {"normalization": "zscore"}, {"cameras": ("head",)}):
        assert cached_path(index, dataclasses.replace(transforms, **same), 16) == places[0]


def test_table_names_every_entry(data):
    robot = r1pro("like_action")
    stats, _ = load_or_compute(*data, TransformConfig(), robot, 4)
    lines = table(stats, robot, "quantile").splitlines()
    assert len(lines) == 1 + 23 + 23
    assert lines[0].split() == ["mean", "std", "q01", "q99"]
    name, mean, *_ = lines[1 + 23 + 3].split()
    assert name == "actions.torso[0]"
    assert float(mean) == pytest.approx(stats.actions.mean[3], rel=1e-3)
