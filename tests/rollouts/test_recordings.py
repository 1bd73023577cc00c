import json

import av
import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.rollouts.recordings import Recorder, list_recordings, open_recording
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.sample.environment import SampleEnvironment

STEPS = 5
PARTS = ("base", "left", "right")


def rollout(task="press", success=True):
    return Rollout(
        task=task,
        instance_id=301,
        rollout_id=0,
        steps=STEPS,
        success=success,
        q_score=1.0 if success else 0.5,
        agent_distance=dict.fromkeys(PARTS, 1.0),
        normalized_agent_distance=dict.fromkeys(PARTS, 1.0),
        simulator_steps=STEPS,
        simulator_time=STEPS / 30,
        normalized_time=1.0,
    )


def record(output_dir, generation="2026", stem="press_301_0"):
    """Returns a recorder of STEPS steps, and what it was given."""
    recorder = Recorder(output_dir / "recordings" / stem, prompt="Press it.", generation=generation)
    environment = SampleEnvironment(generation, 0, 0)
    observations = [environment.observation()]
    actions = np.random.default_rng(0).normal(size=(STEPS, ACTION.size)).astype(np.float32)
    for action in actions:
        recorder.add(observations[-1], action)
        environment.step(action)
        observations.append(environment.observation())
    return recorder, observations[:-1], actions


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_a_recording_gives_back_what_was_seen_and_done(tmp_path, generation):
    recorder, observations, actions = record(tmp_path, generation)
    directory = recorder.close(rollout(success=False))
    assert sorted(path.name for path in directory.iterdir()) == [
        "columns.npz",
        "head.mp4",
        "left_wrist.mp4",
        "recording.json",
        "right_wrist.mp4",
    ]
    recording = open_recording(directory)
    assert (recording.directory, recording.length, recording.fps) == (directory, STEPS, 30)
    assert (recording.task, recording.prompt, recording.generation) == ("press", "Press it.", generation)
    assert (recording.instance_id, recording.rollout_id) == (301, 0)
    assert (recording.success, recording.q_score) == (False, 0.5)
    np.testing.assert_array_equal(recording.action, actions)
    np.testing.assert_array_equal(recording.proprio, [one["robot_r1::proprio"] for one in observations])
    with av.open(str(recording.videos["head"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    seen = np.stack([one["robot_r1::robot_r1:zed_link:Camera:0::rgb"][..., :3] for one in observations])
    assert np.abs(np.stack(frames).astype(int) - seen).mean() < 4


def test_a_recording_is_there_when_it_is_whole_and_not_before(tmp_path):
    recorder, _, _ = record(tmp_path)
    assert list_recordings(tmp_path) == []
    assert [path.name for path in (tmp_path / "recordings").iterdir()] == ["press_301_0.partial"]
    assert list_recordings(tmp_path) == [] != [recorder.close(rollout())]
    assert [path.name for path in list_recordings(tmp_path)] == ["press_301_0"]
    with pytest.raises(FileExistsError, match="press_301_0 is recorded already; remove it"):
        record(tmp_path)


def test_a_discarded_or_broken_off_recording_leaves_nothing_in_the_way(tmp_path):
    record(tmp_path)  # broken off
    record(tmp_path)[0].discard()
    assert list((tmp_path / "recordings").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no recordings/ in"):
        list_recordings(tmp_path / "recordings")


def test_what_does_not_belong_together_is_refused(tmp_path):
    recorder, observations, actions = record(tmp_path)
    with pytest.raises(ValueError, match=r"a row is proprio \[61\] and action \[23\]; got \[61\] and \[22\]"):
        recorder.add(observations[0], actions[0][1:])
    with pytest.raises(ValueError, match="is not the recording of other_301_0"):
        recorder.close(rollout("other"))
    recorder.discard()
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder(tmp_path / "press_301_0", prompt="", generation="2025").close(rollout())


def broken(directory, how):
    facts = json.loads((directory / "recording.json").read_text())
    columns = dict(np.load(directory / "columns.npz"))
    if how == "video":
        (directory / "head.mp4").write_bytes((directory / "head.mp4").read_bytes()[:100])
    elif how == "frames":
        columns = {name: rows[:-1] for name, rows in columns.items()}
    elif how == "pickle":
        columns["action"] = np.array([{}], dtype=object)
    elif how == "nan":
        columns["proprio"][2, 3] = np.nan
    elif how == "rows":
        columns["proprio"] = columns["proprio"][:-1]
    elif how == "version":
        facts["format_version"] = 7
    elif how == "type":
        facts["success"] = 1
    elif how == "generation":
        facts["generation"] = "2024"
    np.savez(directory / "columns.npz", **columns)
    (directory / "recording.json").write_text("{" if how == "json" else json.dumps(facts))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("video", "head.mp4 is no video that can be read"),
        ("frames", "head.mp4 has 5 frames for 4 actions"),
        ("pickle", "columns.npz does not hold the arrays proprio and action: Object arrays cannot be loaded"),
        ("nan", "columns.npz: proprio holds NaN or infinity"),
        ("rows", r"columns.npz: proprio must be float32 \[5, 61\]; got float32 \[4, 61\]"),
        ("version", "recording.json is of format version 7; this version reads 1"),
        ("type", "recording.json: success must be a bool; got 1"),
        ("generation", "recording.json: no generation '2024'; known: 2025, 2026"),
        ("json", "recording.json is no JSON"),
    ],
)
def test_broken_recordings_are_named(tmp_path, how, message):
    directory = record(tmp_path)[0].close(rollout())
    broken(directory, how)
    with pytest.raises(ValueError, match=message):
        open_recording(directory)


def test_a_directory_that_is_no_recording_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no recording: it has no recording.json"):
        open_recording(tmp_path)
