"""Recordings become a data set in openpi-comet's RFT layout, which our reader opens: whole, or not at all."""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.curation import audit
from openpi_b1k.curation.rollouts import importing
from openpi_b1k.curation.rollouts.gather import Settings
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.files import OpenFile
from openpi_b1k.data.frames.mp4 import read_table
from openpi_b1k.data.frames.video import VideoFrames
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.shards import Shard
from openpi_b1k.data.sources import open_demonstrations
from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO, PROPRIO_IN_USE, r1pro
from openpi_b1k.rollouts.recordings import open_recording
from openpi_b1k.sample.world import GOALS
from scripts import import_rollouts
from tests.curation.rollout_cases import as_comet, play, record

ROBOT = r1pro("like_action")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Returns an output directory with episodes 0, 1, 4 (of task 0 again) and 2, of which the last failed."""
    output_dir = tmp_path_factory.mktemp("recorded") / "evaluation"
    for episode in (0, 1, 4):
        record(output_dir, episode)
    record(output_dir, 2, steps=6)
    return output_dir


def source(root, generation="2025", **changes):
    return SourceConfig(root=str(root), generation=generation, validation_episodes=(), **changes)


def run(inputs, output, settings=None, **options):
    inputs = (inputs,) if isinstance(inputs, pathlib.Path) else tuple(inputs)
    return importing.import_rollouts(inputs, output, settings or Settings(), **options)


def test_our_reader_gets_the_rows_frames_and_prompts_that_were_recorded(recorded, tmp_path):
    report = run(recorded, tmp_path / "data")
    index = open_index(tmp_path / "data", source(tmp_path / "data"))
    names = [f"{GOALS[episode % 4].task_name}_{episode}_0" for episode in (0, 4, 1)]  # by task name
    assert [entry.episode.name for entry in report.entries] == names
    assert index.numbers.tolist() == [0, 1, 10_000]
    assert [index.task_names[task] for task in index.tasks.tolist()] == [name.rsplit("_", 2)[0] for name in names]
    columns = Columns(index, ROBOT)
    columns.ensure()
    for row, name in enumerate(names):
        recording = open_recording(recorded / "recordings" / name)
        assert index.lengths[row] == recording.length
        assert index.prompts[index.prompt_ids[row]] == recording.prompt
        proprio, actions = columns.episode(row)
        np.testing.assert_array_equal(actions, recording.action)
        assert proprio.shape == (recording.length, 25)
        for video, path in zip(index.videos, index.video_ids[row], strict=True):
            copy = VideoFrames(index.root / index.video_files[path], 30, (video.height, video.width))
            original = dataclasses.replace(copy, path=recording.videos[video.camera])
            np.testing.assert_array_equal(copy.read((0, len(actions) - 1)), original.read((0, len(actions) - 1)))


def test_row_t_is_what_was_seen_before_action_t(recorded, tmp_path):
    """Against the world itself, not against what was recorded of it."""
    run(recorded, tmp_path / "data")
    index = open_index(tmp_path / "data", source(tmp_path / "data", tasks=(GOALS[1].task_name,)))
    columns = Columns(index, ROBOT)
    columns.ensure()
    _, observations, expected = play(1)
    proprio, actions = columns.episode(0)
    np.testing.assert_array_equal(actions, expected)
    arm = PROPRIO["2025"].slice("arm_left_qpos")
    seen = np.stack([observation["robot_r1::proprio"][arm] for observation in observations])
    np.testing.assert_array_equal(proprio[:, PROPRIO_IN_USE.slice("arm_left_qpos")], seen)
    for video, path in zip(index.videos, index.video_ids[0], strict=True):
        frames = VideoFrames(index.root / index.video_files[path], 30, (video.height, video.width))
        key = next(camera.simulator_name for camera in CAMERAS if camera.name == video.camera)
        for t, image in zip((0, 20), frames.read((0, 20)), strict=True):
            assert np.abs(image.astype(int) - observations[t][f"{key}::rgb"][..., :3]).mean() < 4


def test_the_whole_rollout_is_trained_on_and_prompts_of_level_1_are_the_sentence(recorded, tmp_path):
    run(recorded, tmp_path / "data")
    for level in (0, 1):
        found = open_demonstrations(source(tmp_path / "data", prompt_level=level), ROBOT)
        np.testing.assert_array_equal(found.index.begins, 0)
        np.testing.assert_array_equal(found.index.ends, found.index.lengths)
    annotations = read_annotations(found.index)
    for row, task in enumerate(found.index.tasks.tolist()):
        goal = next(goal for goal in GOALS if goal.task_name == found.index.task_names[task])
        assert annotations.skills.text(row, 0) == annotations.skills.text(row, 4) == goal.prompt


def test_an_audit_finds_nothing_that_would_make_training_wrong(recorded, tmp_path):
    run(recorded, tmp_path / "data")
    report = audit.run(tmp_path / "data", (), "all", Shard(0, 1), 0)
    assert [finding.kind for finding in report.findings if finding.severity == "error"] == []


def test_numbers_and_sentences_are_those_of_the_demonstrations_if_these_are_given(recorded, sample_root, tmp_path):
    everything = Settings(only_success=False)
    run(recorded, tmp_path / "own", everything)
    run(recorded, tmp_path / "theirs", everything, tasks_of=sample_root("2025"))
    own, theirs = (open_index(tmp_path / name, source(tmp_path / name)) for name in ("own", "theirs"))
    assert own.numbers.tolist() == [0, 10_000, 10_001, 20_000]  # blue, red with the left gripper, red with the right
    assert theirs.numbers.tolist() == [0, 1, 10_000, 20_000]
    assert (tmp_path / "theirs/meta/tasks.jsonl").read_text() == (sample_root("2025") / "meta/tasks.jsonl").read_text()


def test_a_prompt_that_differs_from_the_tables_is_kept(sample_root, tmp_path):
    record(tmp_path / "in", 0, prompt="Push the red one.")
    run(tmp_path / "in", tmp_path / "data", tasks_of=sample_root("2025"))
    assert open_index(tmp_path / "data", source(tmp_path / "data")).prompts == ("Push the red one.",)


def test_a_task_that_the_table_lacks_is_refused_with_the_nearest(recorded, sample_root, tmp_path):
    table = tmp_path / "demos/meta/tasks.jsonl"
    table.parent.mkdir(parents=True)
    lines = (sample_root("2025") / "meta/tasks.jsonl").read_text()
    table.write_text(lines.replace("press_red_button_with_right_gripper", "press_red_button_with_right_grippers"))
    with pytest.raises(ValueError, match="did you mean 'press_red_button_with_right_grippers'"):
        run(recorded, tmp_path / "data", tasks_of=tmp_path / "demos")
    assert not (tmp_path / "data").exists()


def test_failures_are_left_out_and_counted_or_kept_on_request(recorded, tmp_path):
    report = run(recorded, tmp_path / "data")
    assert [episode.instance_id for episode in report.gathered.failures] == [2]
    assert "press_blue_button_with_left_gripper: 0 episodes, 0 frames; failed and left out: 1" in report.text
    everything = run(recorded, tmp_path / "all", Settings(only_success=False))
    assert not everything.gathered.failures
    lines = (tmp_path / "all/meta/episodes.jsonl").read_text()
    successes = [json.loads(line)["success"] for line in lines.splitlines()]
    assert sorted(successes) == [False, True, True, True]
    shutil.copytree(recorded / "recordings" / f"{GOALS[2].task_name}_2_0", tmp_path / "failed/recordings/a_1_1")
    with pytest.raises(ValueError, match=r"no rollout is left: 1 failed and 0 are broken; with --no-only-success"):
        run(tmp_path / "failed", tmp_path / "none")


def test_the_same_rollout_in_two_places_is_taken_once_and_another_of_the_same_name_is_another(recorded, tmp_path):
    name = f"{GOALS[0].task_name}_0_0"
    shutil.copytree(recorded / "recordings" / name, tmp_path / "copy/recordings" / name)
    other = record(tmp_path / "seed", 0, seed=5)
    assert other.name == name
    report = run((recorded, tmp_path / "copy", tmp_path / "seed", recorded), tmp_path / "data")
    assert len(report.entries) == 4
    again, first = tmp_path / "copy/recordings" / name, recorded / "recordings" / name
    assert report.gathered.duplicates == ((again, first),)
    assert f"left out, the same as {first}: {again}" in report.text


def cut_video(directory):
    path = directory / "head.mp4"
    path.write_bytes(path.read_bytes()[:-300])


def damage_last_frame(directory):
    path = directory / "head.mp4"
    table = read_table(OpenFile(path), 30)
    place, content = int(table.numbers.argmax()), bytearray(path.read_bytes())
    start, size = int(table.offsets[place]), int(table.sizes[place])
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda directory: (directory / "left_wrist.mp4").unlink(), r"left_wrist\.mp4"),
        (cut_video, r"head\.mp4"),
        (damage_last_frame, r"head\.mp4"),
        (lambda directory: (directory / "columns.npz").write_bytes(b"PK"), r"columns\.npz"),
        (lambda directory: (directory / "recording.json").write_text("{"), r"recording\.json"),
    ],
    ids=["no video", "cut video", "damaged video", "damaged rows", "damaged facts"],
)
def test_broken_recordings_are_named_and_nothing_is_written(recorded, tmp_path, damage, told):
    shutil.copytree(recorded, tmp_path / "in")
    broken = tmp_path / "in/recordings" / f"{GOALS[1].task_name}_1_0"
    damage(broken)
    with pytest.raises(ValueError, match=rf"^1 rollouts cannot be used: {broken}: .*{told}.*--skip-broken"):
        run(tmp_path / "in", tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    report = run(tmp_path / "in", tmp_path / "data", Settings(skip_broken=True))
    assert len(report.entries) == 2
    assert f"left out, broken: {broken}: " in report.text


def test_unfinished_recordings_are_passed_over(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "in")
    name = tmp_path / "in/recordings" / f"{GOALS[1].task_name}_1_0"
    name.rename(name.with_name(f"{name.name}.partial"))
    assert len(run(tmp_path / "in", tmp_path / "data").entries) == 2


def test_rows_that_are_nan_where_the_model_looks_are_refused(recorded, tmp_path):
    shutil.copytree(recorded / "recordings" / f"{GOALS[0].task_name}_0_0", tmp_path / "in/plain")
    directory = as_comet(tmp_path / "in/plain", tmp_path / "comet", "0001_0000", task=GOALS[0].task_name)
    vectors = np.load(directory / "state_action.npz", allow_pickle=True)["arr_0"].item()
    effort = PROPRIO["2025"].slice("joint_qeffort")
    for name, broken in (("joint_qeffort", False), ("trunk_qpos", True)):
        state = [row.copy() for row in vectors["state"]]
        state[3][PROPRIO["2025"].slice(name)] = np.nan
        np.savez(directory / "state_action.npz", {**vectors, "state": state})
        if broken:
            with pytest.raises(ValueError, match="a state or an action is NaN or infinite"):
                run(tmp_path / "comet", tmp_path / "data", tasks_of=tmp_path)
        else:
            assert np.isnan(state[3][effort]).all()
            with pytest.raises(FileNotFoundError, match="no task list"):  # so the rollout was taken
                run(tmp_path / "comet", tmp_path / "data", tasks_of=tmp_path)


def test_robots_and_image_sizes_are_not_mixed(recorded, tmp_path):
    record(tmp_path / "newer", 0, generation="2026")
    with pytest.raises(ValueError, match=r"must have the same proprio size; .* has 256, .* has 61: import them into"):
        run((recorded, tmp_path / "newer"), tmp_path / "data")
    run(tmp_path / "newer", tmp_path / "data")
    assert open_index(tmp_path / "data", source(tmp_path / "data", "2026")).proprio_size == 61


def test_the_output_appears_whole_or_not_at_all(recorded, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    (tmp_path / "data.partial/data").mkdir(parents=True)  # of an import that was killed
    with monkeypatch.context() as patch:
        patch.setattr("openpi_b1k.curation.rollouts.write_rft.info", fail)
        with pytest.raises(OSError, match="No space left"):
            run(recorded, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    run(recorded, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(FileExistsError, match="choose another --output, or delete it"):
        run(recorded, tmp_path / "data")


def test_what_processes_write_is_what_one_writes(recorded, tmp_path):
    for name, workers in (("one", 0), ("many", 2)):
        run(recorded, tmp_path / name, workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 3 * 6 + 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_the_script_tells_what_it_did_or_why_not(recorded, tmp_path, capsys):
    args = import_rollouts.Args(input=(recorded,), output=tmp_path / "data", workers=0)
    assert import_rollouts.run(args) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'data'}: 3 episodes, 53 frames\n")
    assert import_rollouts.run(args) == 2
    assert "error: " in capsys.readouterr().err
    assert import_rollouts.run(dataclasses.replace(args, input=(tmp_path / "none",), output=tmp_path / "b")) == 2
    assert "no directory" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert import_rollouts.run(dataclasses.replace(args, input=(tmp_path / "empty",), output=tmp_path / "b")) == 2
    assert "no finished rollout below" in capsys.readouterr().err
    with pytest.raises(ValueError, match="skip_first must not be negative; got -1"):
        Settings(skip_first=-1)


def test_without_lerobot_its_layout_is_refused_before_anything_is_written(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    monkeypatch.delitem(sys.modules, "openpi_b1k.curation.rollouts.write_lerobot", raising=False)
    args = import_rollouts.Args(input=(recorded,), output=tmp_path / "data", layout="lerobot")
    assert import_rollouts.run(args) == 2
    assert "uv sync --extra lerobot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
