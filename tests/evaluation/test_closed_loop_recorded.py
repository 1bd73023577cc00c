"""Recorded episodes as environments: what is shown is what was recorded, and errors are those of the actions."""

import json
import re

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.evaluation.closed_loop.environments import stacked
from openpi_b1k.evaluation.closed_loop.play import play
from openpi_b1k.evaluation.closed_loop.recorded import RecordedEpisode, play_recorded
from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.evaluation.closed_loop_command import ClosedLoop
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.samples import choose_frames
from openpi_b1k.robots.r1pro import ACTION, PROPRIO, SOURCES
from openpi_b1k.sample.recording import record
from openpi_b1k.sample.world import GOALS
from openpi_b1k.serving.client import ConnectionLostError
from openpi_b1k.serving.requests import parse
from scripts import evaluate as script
from tests import sample_cases

TRAINING = DataChoice(split="training")


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


@pytest.fixture
def dataset(sample_checkpoint):
    config, info = contents.read_config(sample_checkpoint), contents.read_info(sample_checkpoint)
    return choose_frames(config, info, TRAINING, count=1).dataset


def demonstration(dataset, row):
    """Returns the demonstration that a row of the data set was written from."""
    goal = GOALS[int(dataset.index.tasks[row])]
    recordings = [record(instance, goal, PROPRIO["2025"]) for instance in (1, 2)]
    return next(one for one in recordings if np.array_equal(one.actions, dataset.columns.episode(row)[1]))


def test_what_is_shown_is_what_was_recorded(dataset):
    row = int(np.argmax(dataset.index.lengths))
    source = demonstration(dataset, row)
    episode = RecordedEpisode(dataset, EpisodeFrames(dataset.index), row)
    assert (episode.task, episode.prompt) == (source.goal.task_name, source.goal.prompt)
    assert episode.max_steps == source.length > 16  # more than are decoded at a time
    used = [PROPRIO["2025"].slice(field.proprio_field) for _, field in SOURCES]
    for step in range(source.length):
        assert not episode.is_over
        observation = episode.observation()
        assert episode.observation() is observation
        assert parse(observation).kind == "2025"
        assert parse(stacked([observation])).kind == "2026"
        assert observation["task_id"].tolist() == [source.goal.task_index]
        for entries in used:
            np.testing.assert_array_equal(observation["robot_r1::proprio"][entries], source.proprio[step][entries])
        shown = observation["robot_r1::robot_r1:left_realsense_link:Camera:0::rgb"]
        assert (shown.shape, shown.dtype) == ((56, 56, 4), np.uint8)
        assert (shown[..., 3] == 255).all()
        assert np.abs(shown[..., :3].astype(int) - source.frames["left_wrist"][step]).mean() < 6
        episode.step(np.full(ACTION.size, step))
    assert episode.is_over
    assert episode.observation() is observation
    np.testing.assert_array_equal(episode.executed[:, 0], np.arange(source.length))
    np.testing.assert_array_equal(episode.recorded, source.actions)


def test_only_so_many_steps_are_played(dataset):
    episode = RecordedEpisode(dataset, EpisodeFrames(dataset.index), 0, max_steps=3)
    assert episode.max_steps == len(episode.recorded) == 3
    assert RecordedEpisode(dataset, EpisodeFrames(dataset.index), 0, max_steps=10_000).max_steps < 100


def test_errors_are_those_of_the_actions(sample_checkpoint, monkeypatch):
    def act_like_the_recording(episodes, player, witnesses):
        del player
        for number, episode in enumerate(episodes):
            for action in episode.recorded:
                moved = action.copy()
                moved[ACTION.slice("torso")] += 0.25
                if number == 0:
                    moved[ACTION.slice("left_gripper")] *= -1
                episode.step(moved)
        return [None] * len(witnesses)

    monkeypatch.setattr("openpi_b1k.evaluation.closed_loop.recorded.play", act_like_the_recording)
    result = play_recorded(sample_checkpoint, Settings(episodes=2), TRAINING, max_steps=10)
    assert result.errors == {
        "base": 0.0,
        "torso": pytest.approx(0.25, abs=1e-6),
        "left_arm": 0.0,
        "left_gripper_accuracy": 0.5,
        "right_arm": 0.0,
        "right_gripper_accuracy": 1.0,
    }
    assert "  torso                    0.2500 rad\n" in result.report()
    assert "  left_gripper_accuracy    0.5000 of steps with the recorded decision\n" in result.report()
    assert "recorded episodes: 2 of 2, 20 steps" in result.report()


def test_a_checkpoint_is_shown_episodes_over_the_wire(sample_checkpoint, tmp_path, capsys):
    command = ClosedLoop(
        checkpoint=sample_checkpoint,
        environments="recorded",
        data=TRAINING,
        episodes=3,
        max_steps=6,
        execution_horizon=5,
        json=tmp_path / "r.json",
    )
    assert script.run(command) == 0
    told = capsys.readouterr().out
    assert "Observations are the recorded ones whatever the policy does: nothing is said of success." in told
    assert told.splitlines()[-1] == "recorded episodes: 3 of 3, 18 steps"
    written = json.loads((tmp_path / "r.json").read_text())
    assert [one["steps"] for one in written["episodes"]] == [6, 6, 6]
    assert len({one["episode"] for one in written["episodes"]}) == 3
    assert written["timing"]["model_ms"]["count"] == 2
    again = play_recorded(sample_checkpoint, command, TRAINING, max_steps=6)
    assert again.errors == written["errors"]
    step_by_step = play_recorded(
        sample_checkpoint,
        Settings(episodes=3, execution_horizon=5, replay_action_chunk_size=5),
        TRAINING,
        max_steps=6,
    )
    assert step_by_step == again
    assert step_by_step.timing["reply_ms"]["count"] == 2


def test_what_was_given_up_is_told(dataset):
    class Gone:
        needs_observations = True

        def reset(self, num_environments):
            raise ConnectionLostError("gone")

    episode = RecordedEpisode(dataset, EpisodeFrames(dataset.index), 0)
    assert play([episode], Gone(), [None]) == ["policy_connection_lost"]
    assert episode.executed.shape == (0, ACTION.size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablate": "images"}, "recorded episodes know no success and no other proprio than their own: --ablate"),
        ({"against": "x"}, "recorded episodes need --checkpoint, whose config tells how their data are read"),
        ({"data": DataChoice(root="/nowhere")}, "/nowhere"),
    ],
)
def test_what_does_not_fit_recorded_episodes_is_refused(sample_checkpoint, capsys, options, message):
    command = ClosedLoop(**({"checkpoint": sample_checkpoint, "environments": "recorded", "data": TRAINING} | options))
    assert script.run(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": TRAINING}, "--data.* and --max-steps are for --environments recorded"),
        ({"max_steps": 3}, "--data.* and --max-steps are for --environments recorded"),
        ({"max_steps": 0, "environments": "recorded"}, "max_steps must be at least 1; got 0"),
    ],
)
def test_arguments_of_recorded_episodes_are_theirs(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClosedLoop(checkpoint="x", **options)
