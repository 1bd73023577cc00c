import dataclasses
import logging

import numpy as np
import pytest

from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.trimming import BLOCK, moving_window, trim
from openpi_b1k.robots.r1pro import r1pro
from tests.dataset.annotation_cases import make_index, write_annotation

ROBOT = r1pro("like_action")
BASE = ROBOT.action.slice("base")
ARM = ROBOT.action.slice("left_arm")


class StandInColumns:
    """Actions of each episode; what was read of them is kept."""

    robot = ROBOT

    def __init__(self, actions):
        self.actions = actions
        self.read = []

    def episode(self, row):
        self.read.append(row)
        return np.zeros((len(self.actions[row]), 25), np.float32), self.actions[row]


def idle_ends(length, begin, end):
    """Actions that first change at `begin` and for the last time at `end` - 1."""
    actions = np.ones((length, 23), np.float32)
    actions[:, BASE] = 1e-45  # the releases have such denormals
    moving = np.arange(begin, end)
    actions[moving, ARM] += 0.01 * (1 + np.arange(len(moving)))[:, None]
    actions[end:] = actions[end - 1]
    return actions


@pytest.mark.parametrize(("length", "begin", "end"), [(100, 10, 80), (100, 1, 100), (100, 40, 41), (3000, 700, 1300)])
def test_frames_without_motion_at_either_end_are_idle(length, begin, end):
    assert length < BLOCK or begin > BLOCK  # also in more than one block
    assert moving_window(idle_ends(length, begin, end), BASE) == (begin, end)


def test_the_first_frame_counts_when_it_drives_the_base():
    actions = idle_ends(50, 20, 30)
    actions[:, BASE] = 0.5
    assert moving_window(actions, BASE) == (0, 50)


def test_motion_inside_does_not_matter():
    actions = idle_ends(90, 20, 70)
    actions[30:60] = actions[30]
    assert moving_window(actions, BASE) == (20, 70)


def test_a_command_that_creeps_moves():
    actions = np.zeros((2000, 23), np.float32)
    actions[:, ARM.start] = np.arange(2000) * 1.3e-5
    begin, end = moving_window(actions, BASE)
    assert (begin, end) == (77, 1924)  # 76 steps are within STILL of either end
    creeping = actions[:150]  # to within reach of both ends
    begin, end = moving_window(creeping, BASE)
    assert begin < end <= 150


def test_an_episode_without_motion_has_no_window():
    assert moving_window(np.ones((30, 23), np.float32) * (np.arange(23) > 2), BASE) is None


def trimmed(root, lengths, actions):
    index = make_index(root, lengths)
    columns = StandInColumns(actions)
    result, report = trim(index, read_annotations(index), columns)
    return list(zip(result.begins.tolist(), result.ends.tolist(), strict=True)), report, columns


@pytest.mark.parametrize(
    ("window", "duration", "skill_end", "expected"),
    [
        ([7, 90], 100, 90, (7, 90)),
        ([7, 90], 100, 100, (7, 90)),  # its own annotation is believed, whatever the skills
        ([7, 90], None, 100, (7, 90)),
        ([0, 101], 100, 100, (0, 100)),
        ([0, 100], 100, 100, (0, 100)),
        ([7, 90], 400, 90, (7, 90)),
        ([7, 90], 400, 100, (20, 60)),  # of another episode: its first skill was stretched
        ([7, 190], 100, 100, (20, 60)),
        ([50, 50], 100, 100, (20, 60)),
        ([-1, 50], 100, 100, (20, 60)),
        (None, 100, 100, (20, 60)),
    ],
)
def test_the_valid_duration_counts_where_it_can_be_believed(tmp_path, window, duration, skill_end, expected):
    write_annotation(tmp_path, 10, [("a", [0, skill_end], [])], valid_duration=window, task_duration=duration)
    windows, report, columns = trimmed(tmp_path, {10: 100}, [idle_ends(100, 20, 60)])
    assert windows == [expected]
    by_motion = expected == (20, 60)
    assert (report.by_annotation, report.by_motion) == (1 - by_motion, by_motion)
    assert report.disbelieved == (by_motion and window is not None)
    assert columns.read == [0] * by_motion  # rows are read only where motion decides
    assert (report.frames, report.trimmed) == (100, 100 - (expected[1] - expected[0]))


def test_the_report_says_what_was_trimmed(tmp_path, caplog):
    write_annotation(tmp_path, 10, valid_duration=[5, 95])
    write_annotation(tmp_path, 30, valid_duration=[60, 60])
    still = np.zeros((50, 23), np.float32)
    moving = idle_ends(100, 20, 60)
    with caplog.at_level(logging.INFO):
        windows, report, _ = trimmed(tmp_path, {10: 100, 20: 50, 30: 100}, [None, still, moving])
    assert windows == [(5, 95), (0, 50), (20, 60)]
    assert caplog.messages[-1] == (
        f"{tmp_path}: 70 of 250 frames (28.0%) are idle at episodes' ends and left out; 1 episodes by valid_duration, "
        "2 by motion (1 with an unusable valid_duration); 1 without any motion are kept whole"
    )
    assert report.text in caplog.messages[-1]


def test_a_window_that_is_there_stays(tmp_path):
    write_annotation(tmp_path, 10, valid_duration=[5, 95])
    index = make_index(tmp_path, {10: 100})
    annotations = read_annotations(index)
    for before, after in [((20, 120), (20, 95)), ((0, 3), (0, 3)), ((97, 99), (97, 99))]:
        narrow = dataclasses.replace(index, begins=np.array([before[0]]), ends=np.array([min(before[1], 100)]))
        result, _ = trim(narrow, annotations, StandInColumns([]))
        assert (result.begins[0], result.ends[0]) == after


def test_trimming_leaves_its_input_as_it_is(tmp_path):
    write_annotation(tmp_path, 10, valid_duration=[5, 95])
    index = make_index(tmp_path, {10: 100})
    annotations = read_annotations(index)
    trim(index, annotations, StandInColumns([]))
    assert (index.begins.tolist(), index.ends.tolist(), annotations.windows.tolist()) == ([0], [100], [[5, 95]])
