import dataclasses

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.data.index.segments import Kind
from openpi_b1k.evaluation.open_loop import measuring, replays
from openpi_b1k.evaluation.open_loop.baselines import EXPLAINED, Baselines
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.replays import replay
from openpi_b1k.evaluation.open_loop.result import METHODS
from openpi_b1k.evaluation.open_loop.samples import NO_SKILL, choose_frames
from openpi_b1k.robots.r1pro import ACTION, r1pro
from openpi_b1k.serving.policy import Policy
from openpi_b1k.transforms.normalize import FieldStats, NormStats
from openpi_b1k.transforms.pipeline import input_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer

FACTS = {"checkpoint": "<run>/7", "data": "/data", "split": "held-out", "seed": 3}


@pytest.fixture
def config(sample_checkpoint):
    return contents.read_config(sample_checkpoint)


@pytest.fixture
def info(sample_checkpoint):
    return contents.read_info(sample_checkpoint)


class Remembering:
    """A backend that knows the demonstrated chunk of every frame by the state in its observation, and adds `error`."""

    def __init__(self, checkpoint, frames, error=0.0, config=None):
        config, assets = config or contents.read_config(checkpoint), contents.read_assets(checkpoint)
        robot = r1pro(config.data.transforms.state_layout)
        tokenizer = Tokenizer(checkpoint / contents.TOKENIZER_FILE)
        pipeline = input_pipeline(config.data, config.model, robot, assets.norm_stats, tokenizer)
        dataset = frames.dataset
        samples = [pipeline(dataset[i]) for i in range(len(dataset))]
        self.chunks = {self.key(sample): sample["actions"] + error for sample in samples}
        self.sizes = []
        self.policy = Policy(config, assets, tokenizer, self)

    @staticmethod
    def key(sample):
        return sample["raw_state"].tobytes() + sample["prompt_tokens"].tobytes() + sample["images"]["head"].tobytes()

    def sample(self, inputs):
        assert all("actions" not in one for one in inputs)
        self.sizes.append(len(inputs))
        return np.stack([self.chunks[self.key(one)] for one in inputs])


def baselines_of(policy, checkpoint):
    transforms = policy.config.data.transforms
    stats = contents.read_assets(checkpoint).norm_stats
    return Baselines(policy.robot, stats, transforms.delta_fields, policy.config.model.action_horizon)


def test_baselines_are_what_they_are_said_to_be():
    robot = r1pro("grippers_last")
    state, last = np.arange(23) + 100.0, np.arange(23) / 10
    mean = np.arange(23) / 1000
    stats = FieldStats(mean, np.ones(23), mean - 1, mean + 1)
    chunks = Baselines(robot, NormStats(stats, stats), ("torso", "right_arm"), 5).chunks(state, last)
    assert list(EXPLAINED) == ["hold still", "repeat last", "mean action"]
    assert chunks.shape == (3, 5, 23)
    assert (chunks == chunks[:, :1]).all()
    still, repeated, average = chunks[:, 0]
    # State: base 0-2, torso 3-6, left arm 7-13, right arm 14-20, grippers 21, 22. Action: the left gripper is 14.
    np.testing.assert_array_equal(still[:3], 0)
    np.testing.assert_array_equal(still[3:14], state[3:14])
    np.testing.assert_array_equal(still[15:22], state[14:21])
    assert (still[14], still[22]) == (last[14], last[22])
    np.testing.assert_array_equal(repeated, last)
    expected = mean.copy()
    expected[3:7] += state[3:7]
    expected[15:22] += state[14:21]
    np.testing.assert_allclose(average, expected, rtol=1e-15)
    first = Baselines(robot, NormStats(stats, stats), (), 5).chunks(state, None)
    assert (first[0, 0, 14], first[0, 0, 22]) == (1, 1)
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_allclose(first[2, 3], mean)


def test_the_mean_action_follows_statistics_by_step_of_the_chunk():
    table = np.arange(3 * 23).reshape(3, 23) / 10
    vector = FieldStats(np.zeros(23), np.ones(23), -np.ones(23), np.ones(23))
    stats = NormStats(vector, FieldStats(table, np.ones((3, 23)), table - 1, table + 1))
    chunks = Baselines(r1pro("like_action"), stats, (), 3).chunks(np.zeros(23), None)
    np.testing.assert_allclose(chunks[2], table)


def test_frames_are_those_of_the_runs_own_split(config, info):
    frames = choose_frames(config, info, DataChoice(), 10)
    assert frames.notes == ()
    assert len(frames.index.numbers) == 4  # the last of each goal's two
    assert sorted({int(position) for position in frames.index.positions}) == [1]
    assert len(frames.numbers) == 10
    assert set(np.bincount(frames.rows)) == {2, 3}
    assert len(set(frames.tasks)) == 4
    trained = choose_frames(config, info, DataChoice(split="training"), 10)
    assert not set(trained.index.numbers) & set(frames.index.numbers)
    assert "by heart" in trained.notes[0]


def test_a_frame_is_read_with_what_follows_and_the_action_before(config, info):
    frames = choose_frames(config, info, DataChoice(), 1000)
    assert len(frames.numbers) == len(frames.index)  # there are no more
    has_changed = 0
    for place in range(len(frames.numbers)):
        sample, last = frames.read(place)
        row, frame = frames.index.locate(int(frames.numbers[place]))
        assert row == frames.rows[place]
        _, actions = frames.dataset.columns.episode(row)
        np.testing.assert_array_equal(sample["actions"][0], actions[frame])
        assert sample["skill"].startswith(frames.skills[place])
        if frame == 0:
            assert last is None
            continue
        np.testing.assert_array_equal(last, actions[frame - 1])
        has_changed += (actions[frame] != last).any()
    assert has_changed


def test_skills_are_named_without_their_objects(config, info):
    frames = choose_frames(config, info, DataChoice(), 4)
    skills = frames.dataset.skills
    kinds = tuple(Kind("pick up x and open y", ("pick up", "open"), ("x", "y")) for _ in skills.kinds)
    frames.dataset.skills = dataclasses.replace(skills, kinds=kinds)
    assert frames.skills == ["pick up and open"] * 4
    frames.dataset.skills = None
    assert frames.skills == [NO_SKILL] * 4


def test_other_data_are_said_to_be_other_data(config, info, sample_root):
    frames = choose_frames(config, info, DataChoice(root=sample_root("2026"), generation="2026"), 4)
    assert len(frames.notes) == 1
    assert "are not those of the run" in frames.notes[0]
    assert frames.index.fingerprint != info.sources[0].fingerprint


def test_what_cannot_be_looked_at_is_refused(config, info):
    tasks = DataChoice(tasks=("press_red_button_with_left_griper",))
    with pytest.raises(ValueError, match=r"no episode to look at.* Did you mean 'press_red_button_with_left_gripper'"):
        choose_frames(config, info, tasks, 4)
    with pytest.raises(ValueError, match="at least one frame must be looked at; got 0"):
        choose_frames(config, info, DataChoice(), 0)
    nothing = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_episodes=()))
    with pytest.raises(ValueError, match=r"holds out no episode of .*; give --data.split training"):
        choose_frames(nothing, info, DataChoice(), 4)
    random = dataclasses.replace(config, data=dataclasses.replace(config.data, source="random", sample_demos=0))
    with pytest.raises(ValueError, match="trained on random numbers"):
        choose_frames(random, info, DataChoice(), 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        measuring.Sampling(batch_size=0)


def test_one_task_alone(config, info):
    name = "press_blue_button_with_left_gripper"
    frames = choose_frames(config, info, DataChoice(tasks=(name,)), 6)
    assert set(frames.tasks) == {name}
    assert frames.notes == ()


def test_a_policy_that_does_what_was_demonstrated_has_no_error(sample_checkpoint, config, info):
    frames = choose_frames(config, info, DataChoice(), 7)
    exact = Remembering(sample_checkpoint, frames)
    baselines = baselines_of(exact.policy, sample_checkpoint)
    measured = measuring.measure(exact.policy, frames, baselines, FACTS, 4)
    assert exact.sizes == [4, 4]
    np.testing.assert_allclose(measured.result.means()[0], 0, atol=1e-5)
    samples = [frames.read(place)[0] for place in range(7)]
    np.testing.assert_array_equal(measured.result.step_mask, [~sample["is_pad"] for sample in samples])
    assert not measured.result.step_mask.all()
    assert measured.result.episodes.tolist() == [sample["episode"] for sample in samples]

    # An error of 0.5 in normalised units is 0.25 of the span, at every step.
    off = Remembering(sample_checkpoint, frames, error=0.5)
    found = measuring.measure(off.policy, frames, baselines, FACTS, 4).result
    stats = contents.read_assets(sample_checkpoint).norm_stats.actions
    span = (stats.q99 - stats.q01)[ACTION.slice("left_arm")]
    expected = np.mean(np.where(span < 1e-4, 0.5, 0.25 * span))
    assert found.means()[0, ACTION.names.index("left_arm")] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_array_equal(found.errors[1:], measured.result.errors[1:])


def test_baselines_of_frames_are_measured_by_a_loop(sample_checkpoint, config, info):
    frames = choose_frames(config, info, DataChoice(), 7)
    exact = Remembering(sample_checkpoint, frames)
    result = measuring.measure(exact.policy, frames, baselines_of(exact.policy, sample_checkpoint), FACTS, 4).result
    repeat, arm = METHODS.index("repeat last"), ACTION.slice("right_arm")
    for place in range(7):
        sample, last = frames.read(place)
        for step, action in enumerate(sample["actions"]):
            expected = np.abs(action[arm] - last[arm]).mean()
            error = result.errors[repeat, place, ACTION.names.index("right_arm"), step]
            assert error == pytest.approx(expected, abs=1e-7)


def test_a_replay_covers_an_episode_and_shows_the_demonstration(sample_checkpoint, config, info, monkeypatch):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, action_horizon=3))
    frames = choose_frames(config, info, DataChoice(), 7)
    exact = Remembering(sample_checkpoint, frames, config=config)
    found = replay(exact.policy, frames, 2, 4)
    begin, end = int(frames.index.begins[2]), int(frames.index.ends[2])
    assert end - begin > 6
    assert found.episode == frames.index.numbers[2]
    assert [first for first, _ in found.chunks] == list(range(begin, end, 3))
    np.testing.assert_allclose(np.concatenate([actions for _, actions in found.chunks]), found.true, atol=1e-4)
    charts = found.charts(ACTION)
    assert [chart.title.split(":")[0] for chart in charts] == list(ACTION.names)
    solid = [one for one in charts[2].series if not one.is_dashed]
    assert len(solid) == 7
    assert solid[3].points[0] == (begin, pytest.approx(found.true[0, ACTION.slice("left_arm")][3]))
    dashed = [one for one in charts[2].series if one.is_dashed and one.colour == 3]
    assert [one.points[0][0] for one in dashed] == list(range(begin, end, 3))
    assert found.images[0][1].shape == (14, 3 * 14, 3)

    monkeypatch.setattr(replays, "MAX_CHUNKS", 2)
    ends = [first for first, _ in replay(exact.policy, frames, 2, 4).chunks]
    assert ends == [found.chunks[0][0], found.chunks[-1][0]]


def test_an_action_that_is_no_number_is_refused(sample_checkpoint, config, info):
    frames = choose_frames(config, info, DataChoice(), 3)
    broken = Remembering(sample_checkpoint, frames, error=np.nan)
    with pytest.raises(ValueError, match=r"an action that is no number at episode \d+, frame \d+"):
        measuring.measure(broken.policy, frames, baselines_of(broken.policy, sample_checkpoint), FACTS, 4)
