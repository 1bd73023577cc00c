"""Samples against what lerobot's and openpi-comet's own readers return for the same files."""

import dataclasses
import pickle
import threading

import numpy as np
import pytest

from openpi_b1k.data.b1k import B1kDataset, BadSampleError
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.decoding import Decoder
from openpi_b1k.data.frames.files import OpenFile
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.frames.mp4 import read_table
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.prompts import PromptSource
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.b1k import extract_state
from openpi_b1k.transforms.images import resize_with_pad
from tests.dataset.dataset_cases import HORIZONS, make_config

FRAME = {"2025": "index", "2026": "frame_index"}
ROBOT = r1pro("like_action")
ALL = ("rgb", "depth", "segmentation")


def open_dataset(config, root, image_size=None, skills=None, **kwargs):
    index = open_index(root, config.data)
    frames = EpisodeFrames(index, image_size, **kwargs)
    return B1kDataset(
        index, Columns(index, ROBOT), frames, skills, PromptSource(index, None), config.model.action_horizon
    )


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
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
        np.testing.assert_array_equal(
            extract_state(ROBOT, sample["proprio"]), extract_state(ROBOT, expected["observation.state"][n])
        )
        for video in index.videos:
            np.testing.assert_array_equal(sample["images"][video.camera], expected[video.key][n])
        assert (sample["episode"], sample["frame"], sample["task"]) == (number, frame, expected["task_index"][n])
        task = str(expected["task"][n])  # lerobot returns the name in 2026, comet the prompt in 2025
        assert task in (sample["prompt"], index.task_names[sample["task"]])
    if generation == "2026":  # lerobot's own order is by episode, so its global index is ours
        np.testing.assert_array_equal(
            [extract_state(ROBOT, dataset[int(i)]["proprio"]) for i in expected["index"]],
            extract_state(ROBOT, expected["observation.state"]),
        )


def test_a_sample_has_the_promised_fields(generation, root, config):
    sample = open_dataset(config, root)[5]
    horizon = HORIZONS[generation]
    assert list(sample) == ["proprio", "images", "prompt", "skill", "actions", "is_pad", "episode", "frame", "task"]
    assert sample["actions"].shape == (horizon, 23)
    assert sample["proprio"].shape == (25,)
    assert (sample["proprio"].dtype, sample["actions"].dtype) == (np.float32, np.float32)
    assert sample["skill"] == ""
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
    plain, cached = open_dataset(config, root), open_dataset(config, root, 56, cache_bytes=100_000_000)
    resized = open_dataset(config, root, 56)
    for i in (0, 40, 3, 140, 3):
        one, other = plain[i], cached[i]
        one["images"] = {name: resize_with_pad(image, 56) for name, image in one["images"].items()}
        assert_equal(one, other)
        assert_equal(one, resized[i])
    assert not cached[3]["images"]["head"].flags.writeable
    with pytest.raises(ValueError, match="frames are kept at the model's size; give image_size with cache_bytes"):
        EpisodeFrames(plain.index, None, cache_bytes=1)


def test_frame_memory_is_bounded(data_dir, monkeypatch):
    config = make_config("2026", data_dir / "lerobot_v30")
    episode_bytes = 37 * 56 * 56 * 3
    dataset = open_dataset(config, data_dir / "lerobot_v30", 56, cache_bytes=3 * episode_bytes + 10)
    dataset[0]  # kept: three cameras of episode 0 just fit
    fed, feed = [], Decoder.feed
    monkeypatch.setattr(
        Decoder, "feed", lambda self, *args, **kwargs: fed.append(args[1]) or feed(self, *args, **kwargs)
    )
    dataset[1]
    assert not fed
    dataset[100]
    assert fed


def test_a_sample_of_a_run_is_the_sample_itself(root, config, generation):
    modalities = ALL if generation == "2025" else ("rgb",)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, modalities=modalities))
    skills = read_annotations(open_index(root, config.data)).skills if generation == "2025" else None
    plain, mixed = (open_dataset(config, root, 56, skills) for _ in range(2))
    first = int(mixed.index.starts[2])
    runs = [range(first, first + 9), range(first + 9, first + 20), [first + 31, first + 33, first + 34]]
    order = np.random.default_rng(0)
    for run in runs:
        for i in order.permutation(run).tolist():
            assert_equal(mixed.get(i, np.array(run)), plain[i])
    assert_equal(mixed.get(first, np.array(runs[0])), plain[first])  # asked for again, decoded again


def test_a_window_ends_where_the_index_says(data_dir):
    config = make_config("2025", None)
    dataset = open_dataset(config, data_dir / "b1k_2025")
    trimmed = dataclasses.replace(dataset.index, begins=dataset.index.begins + 7, ends=dataset.index.lengths - 11)
    short = B1kDataset(trimmed, dataset.columns, dataset.frames, None, dataset.prompts, 32)
    assert len(short) == len(dataset) - 5 * 18
    sample, last = short[0], short[int(short.index.starts[1]) - 1]
    assert_equal(sample, dataset[7])
    end = int(trimmed.lengths[0]) - 11
    assert last["frame"] == end - 1
    assert last["is_pad"].tolist() == [False] + [True] * 31
    np.testing.assert_array_equal(last["actions"], np.tile(dataset.columns.episode(0)[1][end - 1], (32, 1)))


def test_threads_may_share_a_data_set(data_dir):
    dataset = open_dataset(make_config("2026", None), data_dir / "lerobot_v30", 56, cache_bytes=100_000_000)
    other = open_dataset(make_config("2026", None), data_dir / "lerobot_v30", 56, cache_bytes=100_000_000)
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


def test_bad_samples_say_where_and_spare_the_others(copies):
    root = copies("2025", with_videos=True)
    config = make_config("2025", root)
    dataset = open_dataset(config, root)
    row = int(np.flatnonzero(dataset.index.numbers == 10010)[0])
    first = int(dataset.index.starts[row])
    expected = {i: dataset[i] for i in range(first + 236, first + 240)}
    path = root / "videos/task-0001/observation.images.rgb.left_wrist/episode_00010010.mp4"
    content = bytearray(path.read_bytes())
    table = read_table(OpenFile(path), 30)
    packet = table.packet(250)
    content[int(table.offsets[packet]) : int(table.offsets[packet]) + int(table.sizes[packet])] = bytes(
        table.sizes[packet]
    )
    path.write_bytes(content)
    message = (
        rf"sample {first + 255} cannot be read \(task picking_up_trash, episode 10010, frame 255\): .*left_wrist/"
        r"episode_00010010.mp4 cannot be decoded near frame"
    )
    for run in (None, range(first + 236, first + 260)):
        damaged = open_dataset(config, root)
        with pytest.raises(BadSampleError, match=message):
            damaged.get(first + 255, run)
        for i, sample in expected.items():
            assert_equal(damaged.get(i, run), sample)
    path.unlink()
    orphan = B1kDataset(dataset.index, dataset.columns, EpisodeFrames(dataset.index), None, dataset.prompts, 32)
    with pytest.raises(BadSampleError, match=r"frame 0\): no video .*left_wrist/episode_00010010.mp4; download it"):
        orphan[first]
