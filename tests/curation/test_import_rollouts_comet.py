"""openpi-comet's rollouts become a data set, without what its script leaves out at the beginning."""

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.curation.rollouts.gather import Settings
from openpi_b1k.curation.rollouts.importing import import_rollouts
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.video import VideoFrames
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO, PROPRIO_IN_USE, r1pro
from openpi_b1k.sample.world import GOALS
from tests.curation.rollout_cases import as_comet, play, record

TASK = GOALS[0].task_name
LONG, SHORT = 0, 4
"""Episodes of the task; the short one ends before openpi-comet's rollouts begin to count."""


def write(root, episode=LONG, name="0301_0000", task=TASK):
    return as_comet(record(root.parent / "recorded", episode), root, name, task=task)


def run(root, output, tasks_of, **settings):
    return import_rollouts((root,), output, Settings(**settings), tasks_of=tasks_of)


@pytest.mark.parametrize(("settings", "first"), [({}, 15), ({"skip_first": 3}, 3), ({"skip_first": 0}, 0)])
def test_rows_and_frames_begin_where_it_was_asked(sample_root, tmp_path, settings, first):
    directory = write(tmp_path / "day/experiment")
    report = run(tmp_path / "day", tmp_path / "data", sample_root("2025"), **settings)
    _, observations, actions = play(LONG)
    assert [entry.episode.name for entry in report.entries] == [f"{TASK}_301_0"]
    assert report.entries[0].facts.length == len(actions) - first
    index = open_index(tmp_path / "data", SourceConfig(root=str(tmp_path / "data"), validation_episodes=()))
    assert index.prompts == (GOALS[0].prompt,)
    columns = Columns(index, r1pro("like_action"))
    columns.ensure()
    proprio, commands = columns.episode(0)
    np.testing.assert_array_equal(commands, actions[first:])
    arm = PROPRIO["2025"].slice("arm_left_qpos")
    seen = np.stack([observation["robot_r1::proprio"][arm] for observation in observations])
    np.testing.assert_array_equal(proprio[:, PROPRIO_IN_USE.slice("arm_left_qpos")], seen[first:])
    for video, path in zip(index.videos, index.video_ids[0], strict=True):
        frames = VideoFrames(index.root / index.video_files[path], 30, (video.height, video.width))
        key = next(camera.simulator_name for camera in CAMERAS if camera.name == video.camera)
        assert frames.count() == len(actions) - first
        shown = np.stack([observation[f"{key}::rgb"][..., :3] for observation in observations]).astype(int)
        for t, image in enumerate(frames.read((0, 1, 2, 3))):
            errors = np.abs(shown - image).mean(axis=(1, 2, 3))
            assert errors[first + t] < 8
            assert video.camera != "head" or errors.argmin() == first + t  # the wrists see little that moves
        is_copy = frames.path.read_bytes() == (directory / f"{video.camera}.mp4").read_bytes()
        assert is_copy == (first == 0)


def test_a_rollout_that_is_too_short_is_broken(sample_root, tmp_path):
    write(tmp_path / "day/experiment", SHORT)
    with pytest.raises(ValueError, match="it has 5 rows, of which the first 15 are to be left out"):
        run(tmp_path / "day", tmp_path / "data", sample_root("2025"))


def test_the_task_is_told_by_the_log_or_by_the_user(sample_root, tmp_path):
    root = tmp_path / "day/experiment"
    write(root, task=None)
    with pytest.raises(ValueError, match=r"no .*experiment/cfg\*\.out tells its task; give its name with --task"):
        run(root, tmp_path / "data", sample_root("2025"))
    report = run(root, tmp_path / "data", sample_root("2025"), task=TASK)
    assert report.entries[0].task.name == TASK
    (root / "cfg_a.out").write_text(f"task_name: x\ntask_name='{GOALS[1].task_name}' ")
    report = run(root, tmp_path / "logged", sample_root("2025"), task=TASK)
    assert report.entries[0].task.name == GOALS[1].task_name
    (root / "cfg_b.out").write_text("task_name=other")
    with pytest.raises(ValueError, match=r"must name one task; found other, press_red_button_with_right_gripper"):
        run(root, tmp_path / "unclear", sample_root("2025"))


def test_prompts_come_from_the_demonstrations(tmp_path):
    write(tmp_path / "experiment")
    with pytest.raises(ValueError, match=r"does not tell what the policy was told; .*--tasks-of DIR"):
        run(tmp_path / "experiment", tmp_path / "data", None)
    table = tmp_path / "demos/meta/tasks.jsonl"
    table.parent.mkdir(parents=True)
    table.write_text(f'{{"task_index": 7, "task_name": "{TASK}"}}\n')
    with pytest.raises(ValueError, match=rf"has no prompt of '{TASK}'"):
        run(tmp_path / "experiment", tmp_path / "data", tmp_path / "demos")


def test_what_is_no_rollout_of_the_robot_is_broken(sample_root, tmp_path):
    directory = write(tmp_path / "experiment")
    path = directory / "state_action.npz"
    vectors = np.load(path, allow_pickle=True)["arr_0"].item()
    for change, told in (
        ({"state": [row[:200] for row in vectors["state"]]}, r"states must be \[n, 256 \(2025\) or 61 \(2026\)\]"),
        ({"action": vectors["action"][:-1]}, r"actions must be \[\d+, 23\], as there are states; got"),
        ({"action": [row[:7] for row in vectors["action"]]}, r"actions must be \[\d+, 23\]"),
        ({name: list(vectors[name]) * 2 for name in vectors}, r"has \d+ frames, but there are \d+ rows"),
    ):
        np.savez(path, vectors | change)
        with pytest.raises(ValueError, match=rf"{directory}: .*{told}"):
            run(tmp_path / "experiment", tmp_path / "data", sample_root("2025"))
    np.savez(path, {"states": vectors["state"]})
    with pytest.raises(ValueError, match=r"lacks action and state; it holds states"):
        run(tmp_path / "experiment", tmp_path / "data", sample_root("2025"))
    np.savez(path, vectors)
    directory.rename(directory.with_name("first"))
    with pytest.raises(ValueError, match="must be named <instance>_<episode>"):
        run(tmp_path / "experiment", tmp_path / "data", sample_root("2025"))
