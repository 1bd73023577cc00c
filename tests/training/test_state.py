import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import pi05_b1k
from openpi_b1k import sharding
from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.models import lora
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import (
    abstract_items,
    abstract_state,
    acting,
    augmentation_key,
    full,
    init_key,
    merge,
    random_groups,
    random_state,
    shardings_of,
    split,
    state_from_params,
    step_key,
)
from openpi_b1k.training.trainable import adapted_kernels, bytes_per_device, combine, count, without_adapters


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
    assert total == pytest.approx(4 * 4 * count(state.params), rel=1e-6)  # parameters, two moments, average
    assert bytes_per_device(state) == pytest.approx(total / 4, rel=0.03)


def test_moments_and_average_lie_where_their_parameters_do(small_config):
    _, _, state = build(small_config)
    adam = state.opt_state[1]
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


def frozen(config, *roles, **changes):
    """Returns a config whose frozen kernels are stored in bfloat16."""
    model = dataclasses.replace(config.model, dtype="bfloat16")
    return dataclasses.replace(config, freeze=roles, **({"model": model} | changes))


def adapted(config):
    """Returns a config whose VLM and expert are adapted, and nothing else but projections is trained."""
    ranks = LoraConfig(language=AdapterConfig(rank=2, alpha=3.0), action_expert=AdapterConfig(rank=1, alpha=2.0))
    model = dataclasses.replace(config.model, dtype="bfloat16", lora=ranks)
    return frozen(config, "vision", "language", "action_expert", model=model, ema_decay=None)


def moved(state):
    """Returns the state with random numbers in all that is trained, as after some updates."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jax.device_put(rng.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding)

    moving = jax.tree.map(draw, (state.params, state.opt_state[1].mu, state.ema_params))
    opt_state = (state.opt_state[0], state.opt_state[1]._replace(mu=moving[1]), *state.opt_state[2:])
    return dataclasses.replace(state, params=moving[0], opt_state=opt_state, ema_params=moving[2])


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == same.dtype
        assert leaf.sharding.is_equivalent_to(same.sharding, leaf.ndim)
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(same))


def test_without_devices_the_abstract_state_is_the_same(small_config):
    config = frozen(small_config, "vision")
    mesh = AbstractMesh((1, 4), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    model, optimizer, expected = build(config)
    abstract = abstract_state(model, optimizer, config, mesh)
    assert bytes_per_device(abstract) == bytes_per_device(expected)
    for leaf, other in zip(jax.tree.leaves(abstract), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding.spec) == (other.shape, other.dtype, other.sharding.spec)


def test_what_is_frozen_has_neither_moments_nor_average_and_half_size_kernels(small_config):
    config = frozen(small_config, "vision", "language")
    model, optimizer, abstract = build(config)
    assert set(abstract.frozen) == {"vision", "vlm"}
    for tree in (abstract.params, abstract.opt_state[1].mu, abstract.opt_state[1].nu, abstract.ema_params):
        assert set(tree) == {"action_expert", "suffix"}
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert abstract.frozen["vlm"]["embedder"]["embedding"].dtype == jnp.bfloat16
    state = random_state(model, optimizer, config, abstract)
    assert_same_places(state, abstract)
    whole = random_state(*build(small_config)[:2], small_config, build(small_config)[2])
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs.astype(ours.dtype))),
        full(state),
        full(whole),
    )


def test_some_groups_can_be_drawn_alone_as_the_whole_draws_them(small_config):
    config = frozen(small_config, "language")
    model, optimizer, abstract = build(config)
    drawn = random_groups(model, config, full(abstract), ["vlm", "suffix"])
    state = full(random_state(model, optimizer, config, abstract))
    assert_same(drawn, {"vlm": state["vlm"], "suffix": state["suffix"]})


def test_a_state_around_given_parameters_uses_them_up_and_keeps_their_values(small_config):
    config = frozen(small_config, "vision")
    model, optimizer, abstract = build(config)
    rng = np.random.default_rng(0)
    dense = full(abstract)
    expected = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), dense)
    params = jax.device_put(expected, shardings_of(dense))
    state = state_from_params(params, model, optimizer, config, abstract)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert_same_places(state, abstract)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(full(state)), expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(acting(state)), expected)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("roles", [(), ("vision", "language")])
def test_merge_undoes_split(small_config, ema_decay, roles):
    config = frozen(small_config, *roles, ema_decay=ema_decay)
    model, optimizer, abstract = build(config)
    state = moved(random_state(model, optimizer, config, abstract))
    items = split(state, config)
    assert set(items) == {"params", "train_state"}
    average = state.params if ema_decay is None else state.ema_params
    assert_same(items["params"], combine(average, state.frozen))
    assert set(items["train_state"]) == {"step", "opt_state", *(["params"] if ema_decay else [])}
    assert_same(merge(items, config), state)
    abstract_of = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), items)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_items(abstract, config)) == abstract_of


def test_a_checkpoint_of_adapters_acts_without_them_and_merge_brings_them_back(small_config):
    config = adapted(small_config)
    model, optimizer, abstract = build(config)
    state = moved(random_state(model, optimizer, config, abstract))
    items = split(state, config)
    assert set(items) == {"params", "train_state", "lora"}
    assert set(items["train_state"]) == {"step", "opt_state", "base"}
    dense = Model(dataclasses.replace(config.model, lora=LoraConfig())).abstract_params()
    assert jax.tree.structure(items["params"]) == jax.tree.structure(dense)
    kernels = adapted_kernels(full(state))
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), kernels, _of(items["params"], kernels))
    assert jax.tree.all(changed)
    assert {leaf.dtype for leaf in jax.tree.leaves(_of(items["params"], kernels))} == {jnp.dtype("float32")}
    assert_same(items["params"], jax.device_put(lora.merge(full(state), config.model), shardings_of(items["params"])))
    assert_same(merge(items, config), state)
    wanted = abstract_items(abstract, config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), wanted) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), items
    )
    assert_same_places(items, wanted)


def _of(tree, like):
    return {name: _of(tree[name], child) if isinstance(child, dict) else tree[name] for name, child in like.items()}


def test_a_state_around_dense_parameters_draws_the_adapters_that_a_random_one_has(small_config):
    config = adapted(small_config)
    model, optimizer, abstract = build(config)
    expected = random_state(model, optimizer, config, abstract)
    dense = jax.tree.map(jnp.copy, without_adapters(full(expected)))
    assert_same(state_from_params(dense, model, optimizer, config, abstract), expected)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected.params["vlm"]):
        assert leaf.any() == (path[-1].key == "lora_a"), path


def test_keys_depend_on_seed_and_step_alone_and_never_meet():
    steps = [key(seed, step) for key in (step_key, augmentation_key) for seed in (0, 1) for step in (0, 1, 2)]
    keys = [init_key(0), init_key(1), *steps]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
    np.testing.assert_array_equal(jax.random.key_data(step_key(0, 2)), jax.random.key_data(step_key(0, np.int32(2))))
