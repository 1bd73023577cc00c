"""Samples against what lerobot's and openpi-comet's own readers return for the same files."""

import pickle
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.formats import open_index
from openpi_b1k.transforms.images import resize_with_pad
from tests.dataset.dataset_cases import HORIZONS, make_config

FRAME = {"2025": "index", "2026": "frame_index"}


def open_dataset(config, root, **kwargs):
    return B1kDataset(open_index(root, config.data), 23, config.model.action_horizon, 56, **kwargs)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "images":
            assert_equal(value, other[name])
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_samples_equal_those_of_the_reference_readers(generation, root, config):
    dataset = open_dataset(config, root)
    index = dataset.index
    with np.load(root / "expected.npz") as file:
        expected = dict(file)
    assert len(expected["action"]) > 30
    for n, (number, frame) in enumerate(zip(expected["episode_index"], expected[FRAME[generation]], strict=True)):
        row = int(np.flatnonzero(index.numbers == number)[0])
        sample = dataset[int(index.starts[row] + frame)]
        np.testing.assert_array_equal(sample["actions"], expected["action"][n])
        np.testing.assert_array_equal(sample["is_pad"], expected["action_is_pad"][n])
        np.testing.assert_array_equal(sample["proprio"], expected["observation.state"][n])
        for video in index.videos:
            np.testing.assert_array_equal(sample["images"][video.camera], expected[video.key][n])
        assert (sample["episode"], sample["frame"], sample["task"]) == (number, frame, expected["task_index"][n])
        task = str(expected["task"][n])  # lerobot returns the name in 2026, comet the prompt in 2025
        assert task in (sample["prompt"], index.task_names[sample["task"]])
    if generation == "2026":  # lerobot's own order is by episode, so its global index is ours
        np.testing.assert_array_equal(
            [dataset[int(i)]["proprio"] for i in expected["index"]], expected["observation.state"]
        )


def test_a_sample_has_the_promised_fields(generation, root, config):
    sample = open_dataset(config, root)[5]
    horizon = HORIZONS[generation]
    assert list(sample) == ["proprio", "images", "prompt", "actions", "is_pad", "episode", "frame", "task"]
    assert sample["actions"].shape == (horizon, 23)
    assert (sample["proprio"].dtype, sample["actions"].dtype) == (np.float32, np.float32)
    assert (sample["is_pad"].dtype, sample["is_pad"].shape) == (bool, (horizon,))
    assert {image.dtype for image in sample["images"].values()} == {np.dtype(np.uint8)}
    assert isinstance(sample["prompt"], str)


def test_steps_past_the_end_repeat_the_last_action(generation, root, config):
    dataset = open_dataset(config, root)
    length = int(dataset.index.lengths[0])
    _, actions = dataset.columns.episode(0)
    sample = dataset[length - 3]
    assert sample["is_pad"].tolist() == [False] * 3 + [True] * (HORIZONS[generation] - 3)
    np.testing.assert_array_equal(sample["actions"][:3], actions[-3:])
    np.testing.assert_array_equal(sample["actions"][3:], np.tile(actions[-1], (HORIZONS[generation] - 3, 1)))


def test_a_sample_is_the_same_every_time_and_everywhere(root, config):
    dataset = open_dataset(config, root)
    order = np.random.default_rng(0).permutation(len(dataset))[:12].tolist()
    first = {i: dataset[i] for i in order}
    other = pickle.loads(pickle.dumps(dataset))
    for i in reversed(order):
        assert_equal(first[i], dataset[i])
        assert_equal(first[i], other[i])
    first[order[0]]["actions"][:] = 9  # a sample is the caller's own
    first[order[0]]["proprio"][:] = 9
    assert_equal(dataset[order[0]], other[order[0]])


def test_indices_outside_are_refused(root, config):
    dataset = open_dataset(config, root)
    for i in (-1, len(dataset)):
        with pytest.raises(IndexError, match=f"sample {i} is outside"):
            dataset[i]


def test_frames_in_memory_equal_resized_ones(root, config):
    plain, cached = open_dataset(config, root), open_dataset(config, root, frame_cache_gib=0.1)
    for i in (0, 40, 3, 140, 3):
        one, other = plain[i], cached[i]
        one["images"] = {name: resize_with_pad(image, 56) for name, image in one["images"].items()}
        assert_equal(one, other)
    assert not cached[3]["images"]["head"].flags.writeable


def test_frame_memory_is_bounded(data_dir):
    config = make_config("2026", data_dir / "lerobot_v30")
    episode_bytes = 37 * 56 * 56 * 3
    dataset = open_dataset(config, data_dir / "lerobot_v30", frame_cache_gib=(3 * episode_bytes + 10) / 2**30)
    assert dataset[0]["images"]["head"].shape == (56, 56, 3)  # kept: three cameras of episode 0 just fit
    assert dataset[100]["images"]["head"].shape == (96, 96, 3)  # decoded, at its own size
    assert dataset[1]["images"]["right_wrist"].shape == (56, 56, 3)


def test_samples_from_memory_take_no_time(data_dir):
    dataset = open_dataset(make_config("2026", None), data_dir / "lerobot_v30", frame_cache_gib=0.1)
    for i in range(len(dataset)):
        dataset[i]
    seconds = []
    for i in range(len(dataset)):
        start = time.perf_counter()
        dataset[i]
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 100e-6


def test_threads_may_share_a_data_set(data_dir):
    dataset = open_dataset(make_config("2026", None), data_dir / "lerobot_v30", frame_cache_gib=0.1)
    other = open_dataset(make_config("2026", None), data_dir / "lerobot_v30", frame_cache_gib=0.1)
    expected = {i: other[i] for i in range(0, 260, 13)}
    failures = []

    def read() -> None:
        for i, sample in expected.items():
            try:
                assert_equal(sample, dataset[i])
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_files_read_longest_ago_are_forgotten(data_dir):
    index = open_index(data_dir / "b1k_2025", make_config("2025", None).data)
    columns = Columns(index, 23, cache_bytes=800_000)  # room for the longest episode and little else
    wanted = [Columns(index, 23).episode(row) for row in range(5)]
    for row in (0, 2, 1, 4, 3, 2, 0):
        for values, expected in zip(columns.episode(row), wanted[row], strict=True):
            np.testing.assert_array_equal(values, expected)
    assert len(columns._files) < 5  # noqa: SLF001


def damage(root, edit):
    path = next(root.glob("data/**/*.parquet"))
    pq.write_table(edit(pq.read_table(path)), path)


def test_data_files_that_break_the_promise_are_refused(copies, generation, monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.formats.check_files", lambda index: None)
    root = copies(generation)
    index = open_index(root, make_config(generation, None).data)
    row = int(
        np.flatnonzero(
            index.data_ids == index.data_files.index(str(next(root.glob("data/**/*.parquet")).relative_to(root)))
        )[0]
    )
    length = int(index.lengths[row])
    original = pq.read_table(next(root.glob("data/**/*.parquet")))
    actions = np.array(original["action"].to_pylist(), np.float32)

    def refused(edit, message):
        damage(root, edit)
        with pytest.raises(ValueError, match=message):
            Columns(index, 23).episode(row)
        damage(root, lambda _: original)

    def with_actions(values):
        return lambda table: table.set_column(table.column_names.index("action"), "action", pa.array(list(values)))

    refused(
        lambda table: table.slice(5), rf"has {length - 5} rows of episode {index.numbers[row]}, but meta/ says {length}"
    )
    refused(with_actions(actions[:, :22]), r"action of .*parquet must hold 23 numbers in each")
    actions[7, 3] = np.nan
    refused(with_actions(actions), r"action of .*parquet has NaN or infinity, first in row 7")
    refused(lambda table: table.drop_columns("action"), r"lacks the columns action")
    next(root.glob("data/**/*.parquet")).unlink()
    with pytest.raises(FileNotFoundError, match=r"no data file .*--data.tasks"):
        Columns(index, 23).episode(row)
