"""Known actions on their way through a policy to the sampler, with a tiny network."""

import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.config import serialize
from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.models.inpainting import Inpainting
from openpi_b1k.models.realtime import RealTimeGuide, soft_mask
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.assembly import serving_in_thread
from openpi_b1k.serving.continuing import InpaintingGuidance, RealTimeGuidance, guidance_for
from openpi_b1k.serving.executor import Continuation
from openpi_b1k.serving.guides import guide_of
from openpi_b1k.serving.options import Options
from openpi_b1k.serving.policy import dense
from openpi_b1k.serving.requests import raw_sample
from tests import sample_cases
from tests.serving.fakes import client, stacked

AH, AD, STEPS = 25, 32, 20
REAL_TIME = RealTimeGuidance(5.0)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


@pytest.fixture(scope="module")
def checkpoint(sample_checkpoint, tmp_path_factory):
    """Returns the tiny checkpoint with the flow steps of a real one, the more of which the nearer guides get."""
    copy = shutil.copytree(sample_checkpoint, tmp_path_factory.mktemp("guided") / "1")
    config = contents.read_config(copy)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_flow_steps=STEPS))
    (copy / contents.CONFIG_FILE).write_text(serialize.to_json(config))
    return copy


def samples(policy, num=2):
    environments = [SampleEnvironment("2025", 0, episode) for episode in range(num)]
    source = policy.config.data
    return [raw_sample(one.observation(), policy.robot, source, one.goal.prompt) for one in environments]


def continued(sample, known, num_fixed, guidance):
    return sample | {"continuation": Continuation(known, num_fixed), "guidance": guidance}


def loaded(checkpoint):
    """Returns the policy, whose first call always starts from the same noise."""
    return jax_backend.load(checkpoint, seed=3)


def bound(noise, actions, plain):
    """Returns how far a held action may be off after the last step: that step, along a velocity of the network's size.

    A held action is on its path from `noise` until the last step, whose right velocity is noise - action.
    """
    return (np.abs(noise - actions) + 1.5 * np.abs(noise - plain).max()) / STEPS


def first_noise(num=2):
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(3), 1), (num, AH, AD)))


@pytest.mark.parametrize(
    ("guidance", "num_known", "num_fixed"),
    [(REAL_TIME, 15, 4), (InpaintingGuidance(4, 0.0, None), 4, 4)],
    ids=["real time", "inpainting"],
)
def test_fixed_actions_are_met_and_others_in_the_call_do_not_notice(checkpoint, guidance, num_known, num_fixed):
    policy = loaded(checkpoint)
    free = samples(policy)
    plain = policy.predict([policy.prepare(one) for one in free])
    known = policy.infer(free)[0, 8 : 8 + num_known]

    guided = loaded(checkpoint)
    inputs = [guided.prepare(one) for one in (continued(free[0], known, num_fixed, guidance), free[1])]
    chunks = guided.predict(inputs)
    fixed, entries = slice(num_fixed), slice(ACTION.size)
    target, noise = inputs[0]["actions"], first_noise()[0]
    distance, unguided = (np.abs(one[0] - target)[fixed, entries] for one in (chunks, plain))
    assert (distance <= bound(noise, target, plain[0])[fixed, entries]).all()
    assert distance.mean() < 0.1 * unguided.mean()
    np.testing.assert_allclose(chunks[1], plain[1], rtol=0, atol=2e-5)  # two programs, each with its own rounding
    # In the robot's units, too, and from where the robot is now.
    scale = np.abs(guided.finish(chunks[0] + 1, inputs[0]) - guided.finish(chunks[0], inputs[0]))[fixed]
    off = np.abs(guided.finish(chunks[0], inputs[0])[fixed] - known[fixed])
    np.testing.assert_allclose(off, distance * scale, atol=2e-4)


def test_calls_without_a_continuation_are_the_plain_programs_to_the_bit(checkpoint):
    plain, mixed = loaded(checkpoint), loaded(checkpoint)
    first, second = plain.infer(samples(plain)), plain.infer(samples(plain))
    sample, other = samples(mixed)
    mixed.infer([continued(sample, first[0, :5], 2, REAL_TIME), other])
    np.testing.assert_array_equal(mixed.infer([sample, other]), second)


def acting(checkpoint, execution):
    setup = Options(checkpoint, num_envs=(2,), seed=3, execution=execution).setup(
        lambda path: jax_backend.load(path, seed=3)
    )
    return serving_in_thread(setup)


def num_compiled(policy):
    return jax_backend.compiled_sampler(dense(policy.config.model))._cache_size()  # noqa: SLF001 - jit says nowhere else


def test_kept_actions_come_back_over_the_wire(checkpoint):
    """Ten actions are executed, and the four after them begin the next chunk."""
    execution = ExecutionConfig(execution_horizon=10, kept_actions=4, inpaint_until=0.0)
    local = loaded(checkpoint)
    free = samples(local)
    guidance = guidance_for(execution, ACTION, AH)
    assert guidance is not None
    blank = local.infer(free)  # the server's warm-up: two calls
    local.infer([continued(one, blank[0, :4], 4, guidance) for one in free])
    old = local.infer(free)
    new = local.infer([continued(one, chunk[10:14], 4, guidance) for one, chunk in zip(free, old, strict=True)])

    environments = [SampleEnvironment("2025", 0, episode) for episode in range(2)]
    observation = stacked(*[one.observation() for one in environments])
    with acting(checkpoint, execution) as port, client(port) as one:
        warm = num_compiled(local)
        actions = np.stack([one.act(observation) for _ in range(20)], axis=1)  # [environments, steps, entries]
    assert num_compiled(local) == warm
    np.testing.assert_array_equal(actions[:, :10], old[:, :10])
    np.testing.assert_array_equal(actions[:, 10:], new[:, :10])
    spread = np.abs(blank - old).mean(axis=(0, 1))  # of chunks that know nothing of each other
    assert (np.abs(actions[:, 10:14] - old[:, 10:14]).mean(axis=(0, 1)) < 0.15 * spread).all()


def test_real_time_over_the_wire_compiles_nothing_and_leads_on_from_what_is_executed(checkpoint):
    environments = [SampleEnvironment("2025", 0, episode) for episode in range(2)]
    observation = stacked(*[one.observation() for one in environments])
    policy = loaded(checkpoint)
    seen = []
    sample = policy.backend.sample
    policy.backend = types.SimpleNamespace(sample=lambda inputs: seen.append(inputs) or sample(inputs))
    setup = Options(checkpoint, num_envs=(2,), execution=ExecutionConfig("real_time", execution_horizon=5)).setup(
        lambda path: policy
    )
    with serving_in_thread(setup) as port, client(port) as one:
        warm = num_compiled(policy)
        actions = np.stack([one.act(observation) for _ in range(60)], axis=1)
    assert num_compiled(policy) == warm
    assert np.isfinite(actions).all()
    _, _, first, *later = seen  # after the warm-up
    assert not any("continuation" in one for one in first)
    assert len(later) >= 2
    for call in later:
        for one in call:
            assert one["guidance"] == RealTimeGuidance(5.0)
            assert one["continuation"].num_fixed >= 1
    for i, one in enumerate(later[0]):  # asked at step 5
        known = one["continuation"].actions
        assert len(known) == AH - 5
        np.testing.assert_array_equal(known[0], actions[i, 5])


def model_sample(num_known=None, num_fixed=1, guidance=REAL_TIME, value=0.5):
    if num_known is None:
        return {}
    known = Continuation(np.zeros((num_known, ACTION.size), np.float32), num_fixed)
    return {"actions": np.full((AH, AD), value, np.float32), "continuation": known, "guidance": guidance}


def test_weights_are_on_the_robots_entries_of_samples_that_continue_a_chunk():
    guide = guide_of([model_sample(), model_sample(12, 3), model_sample(7, 0)])
    assert isinstance(guide, RealTimeGuide)
    assert guide.max_weight == 5.0
    weights = np.asarray(guide.weights)
    assert weights.shape == guide.actions.shape == (3, AH, AD)
    assert not weights[0].any()
    assert not weights[..., ACTION.size :].any()
    for i, (overlap, delay) in {1: (12, 3), 2: (7, 0)}.items():
        mask = soft_mask(AH, delay=delay, overlap=overlap)
        np.testing.assert_array_equal(weights[i, :, : ACTION.size], np.repeat(mask[:, None], ACTION.size, axis=1))
        assert (guide.actions[i] == 0.5).all()
    assert np.isfinite(guide.actions).all()
    assert guide_of([model_sample(), model_sample()]) is None


def test_kept_actions_of_samples_that_have_some():
    gain = np.ones((ACTION.size, (AH - 1) * ACTION.size), np.float32)
    guidance = InpaintingGuidance(4, 0.2, gain)
    guide = guide_of([model_sample(4, guidance=guidance, value=0.25), model_sample()])
    assert isinstance(guide, Inpainting)
    assert guide.min_time == 0.2
    assert guide.is_known.tolist() == [True, False]
    assert guide.actions.shape == (2, 4, ACTION.size)
    assert (guide.actions[0] == 0.25).all()
    assert np.isfinite(guide.actions).all()
    np.testing.assert_array_equal(guide.gain, gain)
    with pytest.raises(ValueError, match="4 actions are kept of each chunk; a sample continues 3"):
        guide_of([model_sample(3, guidance=guidance)])


def test_one_call_has_one_kind_of_guide():
    for other in (RealTimeGuidance(4.0), InpaintingGuidance(4, 0.3, None)):
        with pytest.raises(ValueError, match="samples of one call must be guided in one way"):
            guide_of([model_sample(4), model_sample(4, guidance=other)])
