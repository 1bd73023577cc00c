import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import debug
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.optimization import OptimizerConfig, ScheduleConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer


def oracle(step, *, warmup, peak, final, num_steps):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(num_steps - 1 - warmup, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


@pytest.mark.parametrize(("warmup", "num_steps"), [(10, 100), (0, 7), (1, 2), (6, 7), (1000, 50_000)])
def test_learning_rate_is_the_formula_at_every_update(warmup, num_steps):
    schedule = learning_rate_schedule(ScheduleConfig(warmup / num_steps, peak_lr=3e-4, final_lr=2e-5), num_steps)
    steps = np.unique(np.linspace(0, num_steps - 1, 50).astype(int))
    expected = [oracle(step, warmup=warmup, peak=3e-4, final=2e-5, num_steps=num_steps) for step in steps]
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(steps)), expected, rtol=2e-6)


def test_the_peak_comes_after_warm_up_and_the_end_at_the_last_update():
    schedule = learning_rate_schedule(ScheduleConfig(0.05, peak_lr=1e-3, final_lr=1e-4), 200)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(200)))
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[[0, 10, 199]], [1e-3 / 11, 1e-3, 1e-4], rtol=1e-6)


@pytest.mark.parametrize(("warmup", "num_steps", "updates"), [(0.02, 50_000, 1000), (0.29, 100, 29), (0.999, 7, 6)])
def test_warm_up_is_a_part_of_the_run_and_leaves_the_last_update_to_the_peak(warmup, num_steps, updates):
    rates = learning_rate_schedule(ScheduleConfig(warmup, peak_lr=1e-3, final_lr=1e-3), num_steps)
    np.testing.assert_allclose(rates(0), 1e-3 / (updates + 1), rtol=1e-6)
    assert rates(updates - 1) < rates(updates) == np.float32(1e-3)


def test_warm_up_is_openpis():
    theirs = optax.warmup_cosine_decay_schedule(1e-3 / 11, 1e-3, warmup_steps=10, decay_steps=200, end_value=1e-4)
    ours = learning_rate_schedule(ScheduleConfig(0.05, peak_lr=1e-3, final_lr=1e-4), 200)
    np.testing.assert_allclose(jax.vmap(ours)(jnp.arange(11)), jax.vmap(theirs)(jnp.arange(11)), rtol=1e-6)


def test_decay_spares_biases_and_norm_scales_however_they_are_stacked():
    params = Model(debug.CONFIG.model).abstract_params()
    decayed = flatten(decay_mask(params))
    assert not decayed["vision/layers/attn/q/bias"]  # [layers, heads, head_dim]
    assert not decayed["vlm/layers/pre_attention_norm/scale"]  # [layers, width]
    assert not decayed["action_expert/layers/pre_mlp_norm/modulation/bias"]
    for name, is_decayed in decayed.items():
        assert is_decayed == (name.split("/")[-1] in ("kernel", "embedding", "pos_embedding")), name


def test_updates_are_clipped_adamw():
    adamw = OptimizerConfig(b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1, clip_norm=0.5)
    config = dataclasses.replace(debug.CONFIG, optimizer=adamw, schedule=ScheduleConfig(0, 0.1, 0.01), num_steps=4)
    optimizer = make_optimizer(config)
    params = {"a": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([[0.5, 0.25]])}}
    gradients = [np.array([[3.0, 4.0]]), np.array([[0.1, -0.2]])]

    state, ours = optimizer.init(params), params
    expected = {name: np.array(value, np.float64) for name, value in params["a"].items()}
    moments = dict.fromkeys(expected, (0.0, 0.0))
    for k, gradient in enumerate(gradients):
        tree = {"a": {"kernel": jnp.float32(gradient), "bias": jnp.float32(-gradient)}}
        directions, state = optimizer.update(tree, state, ours)
        rate = learning_rate_schedule(config.schedule, config.num_steps)(k)
        ours = optax.apply_updates(ours, jax.tree.map(lambda direction, rate=rate: -rate * direction, directions))
        norm = math.sqrt(2 * (gradient**2).sum())
        for name, sign in (("kernel", 1), ("bias", -1)):
            clipped = sign * gradient * min(1.0, 0.5 / norm)
            first, second = moments[name]
            first, second = 0.8 * first + 0.2 * clipped, 0.9 * second + 0.1 * clipped**2
            moments[name] = first, second
            step = first / (1 - 0.8 ** (k + 1)) / (np.sqrt(second / (1 - 0.9 ** (k + 1))) + 1e-3)
            step = step + (0.1 * expected[name] if name == "kernel" else 0)
            expected[name] = expected[name] - oracle(k, warmup=0, peak=0.1, final=0.01, num_steps=4) * step
    for name, value in expected.items():
        np.testing.assert_allclose(ours["a"][name], value, rtol=1e-5)


def test_the_first_moment_can_be_bfloat16_and_nothing_else_is():
    adamw = OptimizerConfig(first_moment="bfloat16")
    optimizer = make_optimizer(dataclasses.replace(debug.CONFIG, optimizer=adamw))
    params = {"a": {"kernel": jnp.ones((2, 3))}}
    state = optimizer.init(params)
    directions, state = optimizer.update({"a": {"kernel": jnp.full((2, 3), 0.1)}}, state, params)
    moments = optax.tree.get(state, "mu"), optax.tree.get(state, "nu"), directions
    assert [tree["a"]["kernel"].dtype for tree in moments] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(directions["a"]["kernel"], 1.0, rtol=1e-2)
