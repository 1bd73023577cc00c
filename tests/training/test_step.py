import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k import sharding
from openpi_b1k.config.data import CAMERAS
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state, random_state, shardings_of, step_key
from openpi_b1k.training.step import ema_decay, moving_average, train_step


def make_batch(config, seed):
    rng = np.random.default_rng(seed)
    b, model = config.batch_size, config.model
    image = (b, model.image_size, model.image_size, 3)
    shape = (b, model.action_horizon, model.action_dim)
    observation = Observation(
        images={name: rng.integers(0, 256, image, np.uint8) for name in CAMERAS},
        image_masks={name: np.ones(b, bool) for name in CAMERAS},
        state=rng.standard_normal((b, model.action_dim), np.float32),
        prompt_tokens=rng.integers(0, 512, (b, model.max_prompt_tokens), np.int32),
        prompt_mask=np.arange(model.max_prompt_tokens) < rng.integers(8, 64, (b, 1)),
    )
    mask = np.broadcast_to(np.arange(model.action_dim) < 23, shape)
    return Batch(observation, rng.standard_normal(shape, np.float32), mask)


def run(config, steps, devices=None):
    mesh = sharding.make_mesh(config.fsdp, devices)
    model, optimizer = Model(config.model), make_optimizer(config)
    abstract = abstract_state(model, optimizer, config, mesh)
    state = random_state(model, optimizer, config, abstract)
    step = jax.jit(
        train_step(model, optimizer, config),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), sharding.replicated(mesh)),
    )
    history = []
    for k in range(steps):
        batch = jax.device_put(make_batch(config, k), sharding.batch_sharding(mesh))
        before = state
        state, metrics = step(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        history.append(metrics)
    return state, jax.device_get(history)


def test_four_devices_that_share_the_state_train_as_one_does(small_config):
    shared, losses = run(small_config, 3)
    alone, expected = run(dataclasses.replace(small_config, fsdp=1), 3, jax.devices()[:1])
    np.testing.assert_allclose([m["loss"] for m in losses], [m["loss"] for m in expected], rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in losses], [m["grad_norm"] for m in expected], rtol=1e-4)
    for name in ("mu", "nu"):
        for leaf, where in zip(
            jax.tree.leaves(getattr(shared.opt_state[1][0], name)), jax.tree.leaves(shared.params), strict=True
        ):
            assert leaf.sharding == where.sharding
    assert int(shared.step) == int(alone.step) == 3


def test_metrics_are_those_of_the_update(small_config):
    config = small_config
    model, optimizer = Model(config.model), make_optimizer(config)
    mesh = sharding.make_mesh(config.fsdp)
    state = random_state(model, optimizer, config, abstract_state(model, optimizer, config, mesh))
    before = jax.device_get(state)
    batch = jax.device_put(make_batch(config, 0), sharding.batch_sharding(mesh))
    key = step_key(config.seed, 0)
    loss, per_dim = jax.jit(lambda params: model.loss(params, batch, key))(state.params)
    after, (metrics,) = run(config, 1)

    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_per_dim"], per_dim, rtol=1e-4)
    assert not metrics["loss_per_dim"][23:].any()
    squares = sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(jax.device_get(after.params)))
    np.testing.assert_allclose(metrics["param_norm"], np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3 / 3, rtol=1e-6)
    decay = 2 / 11
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, decay * old + (1 - decay) * new, atol=1e-6),
        *jax.device_get((after.ema_params, before.params, after.params)),
    )


@pytest.mark.parametrize(("n", "decay"), [(1, 2 / 11), (10, 11 / 20), (100, 101 / 110), (10_000, 0.99)])
def test_the_average_forgets_sooner_at_the_start(n, decay):
    np.testing.assert_allclose(ema_decay(0.99, jnp.int32(n)), decay, rtol=1e-6)


def test_the_average_is_float32_whatever_the_parameters():
    average = moving_average({"a": jnp.full(2, 2.0)}, {"a": jnp.full(2, 1.0, jnp.bfloat16)}, jnp.float32(0.75))
    assert average["a"].dtype == jnp.float32
    np.testing.assert_array_equal(average["a"], [1.75, 1.75])
