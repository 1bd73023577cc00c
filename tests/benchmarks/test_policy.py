import dataclasses

import numpy as np
import pytest

from openpi_b1k.benchmarks import commands, policy, policy_traffic, soak
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving.requests import parse, raw_sample
from openpi_b1k.transforms.images import resize_with_pad
from tests.serving.fakes import ROBOT

HORIZON = 4


@pytest.fixture(scope="module")
def subject():
    data = DataConfig(transforms=TransformConfig(tokenizer=SAMPLE_TOKENIZER))
    model = ModelConfig(image_size=28, action_horizon=HORIZON)
    return policy.null_subject(TrainConfig(weights="none", data=data, model=model))


def test_the_null_network_acts_by_the_state_and_the_rest_of_serving_is_real(subject):
    acting, [profile] = subject.policies.get("null"), subject.policies.profiles
    [first, second] = parse(policy_traffic.observation(2, mark=0.25)).environments
    for environment, expected in ((first, 0.25), (second, 0.26)):
        sample = raw_sample(environment.observation, ROBOT, profile.source, policy.PROMPT)
        inputs = acting.prepare(sample)
        head = sample["images"]["head"]
        assert head.shape == (720, 720, 3)
        np.testing.assert_array_equal(inputs["images"]["head"], resize_with_pad(np.ascontiguousarray(head), 28))
        [chunk] = acting.predict([inputs])
        actions = acting.finish(chunk, inputs)
        assert actions.shape == (HORIZON, ACTION.size)
        np.testing.assert_allclose(actions[:, 0], expected, atol=1e-6)


def test_a_row_is_what_replies_with_and_without_a_new_chunk_take(subject):
    [row] = policy.measure(subject, [2], num_chunks=3)
    assert (row.num_envs, row.channels) == (2, 4)
    assert row.message_mib == pytest.approx(2 * 4 * (720**2 + 2 * 480**2) / 2**20, rel=0.01)
    assert row.new_chunk_aim == pytest.approx(1.5 * row.resize_p50 + 3)
    assert 0 < row.preprocess < row.new_chunk_p50 <= row.new_chunk_p99
    assert row.new_chunk_p50 < row.round_trip_p50
    assert 0 < row.kept_chunk_p50 <= row.kept_chunk_p99
    assert row.model >= 0
    assert "new_chunk_aim" in commands.table([dataclasses.asdict(row)])


def test_of_each_chunk_one_reply_is_new(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(policy, "_row", lambda *row: seen.append(row))
    policy.measure(subject, [1], num_chunks=2, channels=3)
    [(num, channels, resizes, replies)] = seen
    assert (num, channels, len(resizes)) == (1, 3, 2)
    assert [reply.is_new_chunk for reply in replies] == [True, False, False, False] * 2
    for reply in replies:
        parts = ("decode_ms", "infer_ms")
        assert sum(reply.server_timing[part] for part in parts) <= reply.total_ms


def test_replies_that_belong_to_other_requests_end_a_soak(subject, monkeypatch):
    monkeypatch.setattr(
        policy.NullNetwork, "sample", lambda self, inputs: np.zeros((len(inputs), HORIZON, 32), np.float32)
    )
    with pytest.raises(RuntimeError, match=r"client \d, request 0: got .* expected"):
        soak.measure(20.0, subject)


def test_a_short_soak_counts_its_requests(subject):
    found = soak.measure(1.0, subject)
    assert 3 <= found.requests <= soak.RATE * 1.0 + soak.NUM_CLIENTS
    assert found.longest_ms > 0


@pytest.mark.parametrize(("num_envs", "num_chunks"), [([0], 1), ([1], 0)])
def test_numbers_below_one_are_refused(subject, num_envs, num_chunks):
    with pytest.raises(ValueError, match="environments and chunks must be at least 1; got"):
        policy.measure(subject, num_envs, num_chunks)


def test_a_soak_of_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave --checkpoint out"):
        commands.Policy(checkpoint=tmp_path, soak_minutes=1.0).rows()
