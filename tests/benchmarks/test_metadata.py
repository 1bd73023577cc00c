"""Generated meta files have the release's size and form, and the reader opens them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from openpi_b1k.benchmarks.metadata import Episodes, pack, release_episodes, write_meta
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.index.formats import open_index


def test_release_has_the_published_size():
    episodes = release_episodes()
    assert (len(episodes.lengths), episodes.lengths.sum()) == (20_000, 210_916_774)
    assert (np.bincount(episodes.tasks) == 200).all()
    assert 148 <= episodes.lengths.min() < 1000
    assert 40_000 < episodes.lengths.max() <= 45_762
    assert set(episodes.sizes.values()) == {720, 480}


def test_files_are_filled_one_after_the_other():
    place = pack(np.array([0, 0, 0, 1, 1]), np.array([4, 5, 3, 20, 1]), 10)
    assert place.files.tolist() == [0, 0, 1, 0, 1]
    assert place.firsts.tolist() == [0, 4, 0, 0, 0]


def test_reader_finds_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)
    episodes = release_episodes(episodes=205, frames=1_000_000, tasks=3)
    names = [f"task_{i}" for i in range(3)]
    write_meta(tmp_path, episodes, names, [f"Do thing {i}." for i in range(3)])
    index = open_index(tmp_path, DataConfig(generation="2026", modalities=("rgb", "depth")))
    np.testing.assert_array_equal(index.lengths, episodes.lengths)
    np.testing.assert_array_equal(index.tasks, episodes.tasks)
    np.testing.assert_array_equal(index.first_rows, episodes.data.firsts)
    for column, video in enumerate(index.videos):
        np.testing.assert_array_equal(index.first_frames[:, column], episodes.videos[video.key].firsts)
    np.testing.assert_array_equal(index.recordings, episodes.tasks * 10_000 + index.positions * 10)


def test_form_is_that_of_lerobot(tmp_path, data_dir):
    """Names, types and nesting of every column that LeRobot 0.4.4 wrote into its own table."""
    theirs = data_dir / "lerobot_v30/meta"
    tasks, lengths = np.zeros(2, np.int64), np.array([30, 40])
    sizes = {
        "observation.rgb.zed_link_camera_0": 96,
        "observation.rgb.left_realsense_link_camera_0": 64,
        "observation.rgb.right_realsense_link_camera_0": 64,
    }
    place = pack(tasks, lengths, 100)
    write_meta(tmp_path, Episodes(tasks, lengths, place, dict.fromkeys(sizes, place), sizes), ["a_b"], ["A b."])
    table = "episodes/chunk-000/file-000.parquet"
    ours = pq.read_schema(tmp_path / "meta" / table)
    for field in pq.read_schema(theirs / table):
        assert ours.field(field.name).type == field.type, field.name
    for name in ("info.json", "stats.json"):
        expected, found = (json.loads((meta / name).read_text()) for meta in (theirs, tmp_path / "meta"))
        assert set(expected) <= set(found)
    stats = json.loads((theirs / "stats.json").read_text())
    written = json.loads((tmp_path / "meta/stats.json").read_text())
    for name, kinds in stats.items():
        for kind, values in kinds.items():
            assert np.shape(written[name][kind]) == np.shape(values), (name, kind)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    for name, feature in json.loads((theirs / "info.json").read_text())["features"].items():
        assert {key: features[name][key] for key in ("dtype", "shape", "names")} == {
            key: feature[key] for key in ("dtype", "shape", "names")
        }


def test_tasks_without_names_are_refused(tmp_path):
    episodes = release_episodes(episodes=100, frames=100_000)
    with pytest.raises(ValueError, match="every task needs a name and a sentence; got 1 and 1 for tasks up to 99"):
        write_meta(tmp_path, episodes, ["a"], ["A."])
