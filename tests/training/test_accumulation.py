import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k import sharding
from openpi_b1k.config.optimization import AugmentationConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.accumulation import cut, loss_and_gradients
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state, random_state
from openpi_b1k.training.trainable import groups
from tests.training.test_step import make_batch, norm, opened, two_sources

COLLECTIVES = ("all-to-all", "all-gather", "all-reduce", "collective-permute", "reduce-scatter")


def measure(config, batch, devices=None):
    """Returns errors and gradients on the host, and the compiled function's text."""
    mesh = sharding.make_mesh(config.fsdp, devices)
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    abstract = abstract_state(model, optimizer, config, mesh)
    state = opened(random_state(model, optimizer, config, abstract))
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    compiled = jax.jit(loss_and_gradients(model, config)).lower(state, batch).compile()
    errors, gradients = compiled(state, batch)
    return jax.device_get(errors), gradients, compiled.as_text()


def assert_same_errors(ours, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)


def assert_same_gradients(ours, expected):
    """Checks each group's difference against 1e-5 of its norm."""
    ours, expected = groups(jax.device_get(ours)), groups(jax.device_get(expected))
    assert ours.keys() == expected.keys()
    for name, leaves in ours.items():
        difference = norm([a - b for a, b in zip(leaves, expected[name], strict=True)])
        assert difference < 1e-5 * norm(expected[name]), name


@pytest.fixture
def config(small_config):
    """Returns a config with two sources, two flow samples and sixteen rows."""
    return two_sources(dataclasses.replace(small_config, batch_size=16, flow_samples=2, ema_decay=None))


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig()], ids=["plain", "augmented"])
def test_pieces_add_up_to_the_large_batch(config, augmentation):
    if augmentation is not None:
        config = dataclasses.replace(config, augmentation=augmentation)
    batch = make_batch(config, 0)  # its masks leave out different numbers of entries in every row
    one = jax.devices()[:1]
    expected = measure(dataclasses.replace(config, fsdp=1), batch, one)
    for pieces, fsdp, devices in ((4, 1, one), (2, 4, None), (4, 2, None)):
        errors, gradients, _ = measure(dataclasses.replace(config, fsdp=fsdp, microbatches=pieces), batch, devices)
        assert_same_errors(errors, expected[0])
        assert_same_gradients(gradients, expected[1])


def test_a_piece_without_anything_that_counts_adds_nothing(config):
    batch = make_batch(config, 1)
    batch.action_mask[:8] = False
    one = jax.devices()[:1]
    config = dataclasses.replace(config, fsdp=1)
    expected = measure(config, batch, one)
    errors, gradients, _ = measure(dataclasses.replace(config, microbatches=2), batch, one)
    assert errors.dim_counts.sum() == 2 * batch.action_mask.sum()
    assert_same_errors(errors, expected[0])
    assert_same_gradients(gradients, expected[1])


def test_frozen_groups_have_no_gradients_in_pieces_either(config):
    config = dataclasses.replace(config, fsdp=1, microbatches=2, train_expert_only=True)
    _, gradients, _ = measure(config, make_batch(config, 0), jax.devices()[:1])
    assert set(gradients) == {"action_expert", "suffix"}


def test_gradients_are_float32_and_lie_where_their_parameters_do(config):
    model = dataclasses.replace(config.model, dtype="bfloat16")
    config = dataclasses.replace(config, microbatches=2, model=model)
    _, gradients, _ = measure(config, make_batch(config, 0))
    mesh = sharding.make_mesh(config.fsdp)
    wanted = abstract_state(Model(config.model), make_optimizer(config), config, mesh).params
    for leaf, where in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == jnp.float32
        assert leaf.sharding.is_equivalent_to(where.sharding, leaf.ndim)


def test_each_piece_takes_an_equal_part_of_every_devices_rows_where_they_are():
    mesh = sharding.make_mesh(2)
    rows = jax.device_put(np.arange(16 * 3).reshape(16, 3), sharding.batch_sharding(mesh))
    compiled = jax.jit(lambda rows: cut(rows, 2, mesh)).lower(rows).compile()
    pieces = compiled(rows)
    np.testing.assert_array_equal(pieces[0, :, 0] // 3, [0, 1, 4, 5, 8, 9, 12, 13])
    np.testing.assert_array_equal(pieces[1, :, 0] // 3, [2, 3, 6, 7, 10, 11, 14, 15])
    assert not any(name in compiled.as_text() for name in COLLECTIVES)
    for shard, piece in zip(rows.addressable_shards, pieces.addressable_shards, strict=True):
        np.testing.assert_array_equal(np.asarray(piece.data).reshape(4, 3), shard.data)


def test_images_stay_where_they_are(config):
    _, _, text = measure(dataclasses.replace(config, microbatches=2), make_batch(config, 0))
    moved = [line for line in text.splitlines() if any(f" {name}(" in line for name in COLLECTIVES) and "u8[" in line]
    assert "u8[" in text
    assert not moved


def test_rows_that_cannot_be_shared_are_refused():
    mesh = sharding.make_mesh(4)
    message = "a batch of 20 cannot be cut into 2 microbatches on 4 devices: batch_size must be a multiple of 8"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda rows: cut(rows, 2, mesh), jnp.zeros((20, 2)))


def test_auto_is_refused(config):
    with pytest.raises(ValueError, match="microbatches is still auto; give --microbatches"):
        loss_and_gradients(Model(config.model), dataclasses.replace(config, microbatches="auto"))
