"""Which episodes are used and which are held out."""

import dataclasses

import numpy as np
import pytest

from openpi_b1k.benchmarks.metadata import Episodes, pack, write_meta
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.index import selection
from openpi_b1k.data.index.formats import open_index

KEYS = {
    "observation.rgb.zed_link_camera_0": 720,
    "observation.rgb.left_realsense_link_camera_0": 480,
    "observation.rgb.right_realsense_link_camera_0": 480,
}
COUNTS = {"first": 45, "second": 7, "third": 1}
SOURCE = DataConfig(generation="2026")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Returns the meta files of three tasks with 45, 7 and 1 episodes; there are no other files."""
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)
    tasks = np.repeat(np.arange(3), list(COUNTS.values()))
    lengths = np.random.default_rng(0).integers(50, 90, len(tasks))
    videos = {key: pack(tasks, lengths, 300) for key in KEYS}
    write_meta(
        tmp_path, Episodes(tasks, lengths, pack(tasks, lengths, 200), videos, KEYS), list(COUNTS), ["A.", "B.", "C."]
    )
    return tmp_path


def positions(index):
    """Returns {task name: positions} by the data set's own numbers alone."""
    starts = dict(zip(COUNTS, np.cumsum([0, *COUNTS.values()])[:-1], strict=True))
    return {
        name: (index.numbers[index.tasks == task] - starts[name]).tolist() for task, name in index.task_names.items()
    }


def test_default_holds_out_the_last_twentieth_of_each_task(root, caplog):
    caplog.set_level("INFO")
    training, validation = selection.split(open_index(root, SOURCE), SOURCE)
    assert positions(training) == {"first": list(range(43)), "second": list(range(6)), "third": [0]}
    assert positions(validation) == {"first": [43, 44], "second": [6], "third": []}
    assert "tasks with a single episode hold out none: third" in caplog.text


def test_default_holds_out_of_the_chosen_episodes(root):
    source = dataclasses.replace(SOURCE, tasks=("first", "second"), episodes=(5, 0, 3))
    index = open_index(root, source)
    assert positions(index) == {"first": [0, 3, 5], "second": [0, 3, 5], "third": []}
    training, validation = selection.split(index, source)
    assert positions(training) == {"first": [0, 3], "second": [0, 3], "third": []}
    assert positions(validation) == {"first": [5], "second": [5], "third": []}


def test_held_out_positions_count_all_episodes_of_a_task(root):
    source = dataclasses.replace(SOURCE, tasks=("first",), episodes=tuple(range(30)), validation_episodes=(2, 40))
    training, validation = selection.split(open_index(root, source), source)
    assert positions(training)["first"] == [i for i in range(30) if i != 2]
    assert positions(validation)["first"] == [2, 40]


def test_nothing_is_held_out_on_request(root):
    source = dataclasses.replace(SOURCE, validation_episodes=())
    training, validation = selection.split(open_index(root, source), source)
    assert (len(training.numbers), len(validation.numbers), len(validation)) == (53, 0, 0)


def test_positions_beyond_a_task_are_refused(root):
    message = r"has position 7, but task second has 7 episodes \(positions 0 to 6\)"
    for name, flag in (("episodes", "--data.episodes"), ("validation_episodes", "--data.validation-episodes")):
        source = dataclasses.replace(SOURCE, tasks=("first", "second"), **{name: (0, 7)})
        with pytest.raises(ValueError, match=f"{flag} {message}"):
            open_index(root, source)
    open_index(root, dataclasses.replace(SOURCE, tasks=("first",), episodes=(0, 7)))


def test_a_task_must_keep_something_to_train_on(root):
    source = dataclasses.replace(SOURCE, validation_episodes=(0,))
    with pytest.raises(ValueError, match="every chosen episode of third is held out, so there is nothing to train on"):
        selection.split(open_index(root, source), source)


def test_addresses_stay_with_their_episodes(root):
    """Rows and frames of every episode, from a walk through the files, whatever is chosen."""
    whole = open_index(root, SOURCE)
    held, expected = {}, {}
    for number, task, length, file in zip(whole.numbers, whole.tasks, whole.lengths, whole.data_ids, strict=True):
        expected[number] = (whole.data_files[file], held.get(file, 0), length)
        assert expected[number][0].startswith(f"data/chunk-{task:03d}/")
        held[file] = held.get(file, 0) + length
    assert max(held.values()) > 90  # files of several episodes
    source = dataclasses.replace(SOURCE, tasks=("second", "first"), episodes=(1, 4, 6), validation_episodes=(5,))
    for index in (whole, *selection.split(open_index(root, source), source)):
        for row, number in enumerate(index.numbers):
            address = (index.data_files[index.data_ids[row]], index.first_rows[row], index.lengths[row])
            assert address == expected[number]
        i = 0
        for row, length in enumerate(index.lengths.tolist()):
            assert [index.locate(i), index.locate(i + length - 1)] == [(row, 0), (row, length - 1)]
            i += length
        assert i == len(index)


def test_windows_move_samples_and_the_fingerprint(root):
    index = open_index(root, SOURCE).take(np.array([3, 1]))
    trimmed = dataclasses.replace(index, begins=np.array([4, 0]), ends=index.lengths - [0, 9])
    assert [trimmed.locate(0), trimmed.locate(int(index.lengths[0]) - 4)] == [(0, 4), (1, 0)]
    assert len(trimmed) == len(index) - 13
    assert trimmed.locate(len(trimmed) - 1) == (1, index.lengths[1] - 10)
    assert trimmed.fingerprint != index.fingerprint
    assert trimmed.meta_digest == index.meta_digest
