import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import pi05_b1k
from openpi_b1k import sharding
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import report
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import (
    abstract_state,
    init_key,
    merge,
    random_state,
    shardings_of,
    split,
    state_from_params,
    step_key,
)


def build(config, devices=None):
    model, optimizer = Model(config.model), make_optimizer(config)
    return model, optimizer, abstract_state(model, optimizer, config, sharding.make_mesh(config.fsdp, devices))


def bytes_of(leaf):
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def share(leaf):
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) / math.prod(leaf.shape)


def assert_same_places(state, abstract):
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_at_full_size_a_quarter_lies_on_each_of_four_devices_and_little_is_replicated():
    config = dataclasses.replace(pi05_b1k.CONFIG, fsdp=4, ema_decay=0.999)
    _, _, state = build(config)
    leaves = jax.tree.leaves(state)
    assert {share(leaf) for leaf in leaves} == {0.25, 1.0}
    replicated = sum(bytes_of(leaf) for leaf in leaves if share(leaf) == 1)
    total = sum(bytes_of(leaf) for leaf in leaves)
    assert replicated < 0.01 * total
    assert total == pytest.approx(4 * 4 * report.count(state.params), rel=1e-6)  # parameters, two moments, average
    assert report.bytes_per_device(state) == pytest.approx(total / 4, rel=0.03)


def test_moments_and_average_lie_where_their_parameters_do(small_config):
    _, _, state = build(small_config)
    adam = state.opt_state[1][0]
    for tree in (adam.mu, adam.nu, state.ema_params):
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, tree, state.params))
    assert adam.count.sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated
    assert sum(share(leaf) == 0.25 for leaf in jax.tree.leaves(adam.mu)) > 10


def test_the_state_is_made_where_it_belongs_and_is_the_same_on_any_mesh(small_config):
    states = []
    for fsdp, devices in ((4, None), (1, jax.devices()[:1])):
        config = dataclasses.replace(small_config, fsdp=fsdp)
        model, optimizer, abstract = build(config, devices)
        state = random_state(model, optimizer, config, abstract)
        assert_same_places(state, abstract)
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[0].ema_params)
    assert states[0].step == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(states[0].opt_state))


def test_a_state_around_given_parameters_uses_them_up_and_keeps_their_values(small_config):
    _, optimizer, abstract = build(small_config)
    rng = np.random.default_rng(0)
    expected = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract.params)
    params = jax.device_put(expected, shardings_of(abstract.params))
    state = state_from_params(params, optimizer, small_config, abstract)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.ema_params), expected)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_merge_undoes_split(small_config, ema_decay):
    _, _, state = build(dataclasses.replace(small_config, ema_decay=ema_decay))
    weights, rest = split(state)
    assert ("params" in rest) == (ema_decay is not None)
    assert weights is (state.params if ema_decay is None else state.ema_params)
    assert merge(weights, rest) == state


def test_keys_depend_on_seed_and_step_alone_and_never_meet():
    keys = [init_key(0), init_key(1)] + [step_key(seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
    np.testing.assert_array_equal(jax.random.key_data(step_key(0, 2)), jax.random.key_data(step_key(0, np.int32(2))))
