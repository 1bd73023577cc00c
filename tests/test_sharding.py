import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.sharding import (
    batch_sharding,
    gathered,
    make_mesh,
    on_mesh,
    param_shardings,
    replicated,
    split_batch,
    take_rows,
)


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (4, 1)), (2, (2, 2)), (4, (1, 4))])
def test_neighbours_lie_along_fsdp(fsdp, shape):
    mesh = make_mesh(fsdp)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == shape
    assert [device.id for device in mesh.devices.ravel()] == [0, 1, 2, 3]
    assert make_mesh(1, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("fsdp", [0, 3, 8])
def test_a_mesh_that_does_not_fit_is_refused(fsdp):
    with pytest.raises(ValueError, match=rf"fsdp {fsdp} does not divide the 4 devices .* one of \[1, 2, 4\]"):
        make_mesh(fsdp)


def test_at_full_size_each_large_tensor_is_a_quarter_per_device():
    model, mesh = Model(ModelConfig()), make_mesh(4)
    abstract = model.abstract_params()
    shardings = flatten(param_shardings(mesh, abstract, model.logical_axes()))
    whole = total = 0
    for name, leaf in flatten(abstract).items():
        size, part = leaf.size, int(np.prod(shardings[name].shard_shape(leaf.shape)))
        total += size
        whole += size if part == size else 0
        assert part in (size, size // 4)
        assert part < size or leaf.size < 200_000, name
    assert whole < 0.01 * total


def test_an_axis_that_does_not_divide_stays_whole():
    abstract = {"a": jax.ShapeDtypeStruct((6, 8), jnp.float32), "b": jax.ShapeDtypeStruct((6, 8), jnp.float32)}
    axes = {"a": ("embed", "mlp"), "b": ("mlp", "embed")}
    shardings = param_shardings(make_mesh(4), abstract, axes)
    assert shardings["a"].spec == PartitionSpec(None, None)
    assert shardings["b"].spec == PartitionSpec(None, "fsdp")


def test_an_axis_without_a_rule_is_refused():
    with pytest.raises(KeyError, match="no sharding rule for the axis 'widht'; known axes: embed"):
        param_shardings(make_mesh(4), {"a": jax.ShapeDtypeStruct((4,), jnp.float32)}, {"a": ("widht",)})


def test_the_batch_is_split_over_both_axes():
    mesh = make_mesh(2)
    assert batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)
    assert replicated(mesh).shard_shape((8, 3)) == (8, 3)


def test_without_a_mesh_nothing_is_placed():
    x = jnp.ones((8, 4))
    assert split_batch(x) is x
    with on_mesh(make_mesh(1, jax.devices()[:1])):
        assert gathered(x) is x


def test_rows_come_from_a_split_table_without_gathering_it():
    mesh = make_mesh(2)
    table = jax.random.normal(jax.random.key(0), (64, 8))
    index = jax.random.randint(jax.random.key(1), (8, 3), 0, 64)

    def look_up(table: jax.Array, index: jax.Array) -> jax.Array:
        with on_mesh(mesh):
            return take_rows(table, index)

    width = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    compiled = jax.jit(look_up, in_shardings=(width, batch_sharding(mesh))).lower(table, index).compile()
    rows = compiled(jax.device_put(table, width), jax.device_put(index, batch_sharding(mesh)))
    np.testing.assert_array_equal(rows, table[index])
    assert rows.sharding.shard_shape(rows.shape) == (2, 3, 8)
    assert "f32[64,8]" not in compiled.as_text()


def test_a_batch_that_does_not_divide_is_left_alone():
    with on_mesh(make_mesh(4)):
        x = jnp.ones((6, 4))
        assert split_batch(x) is x
