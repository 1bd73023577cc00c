import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import debug, pi05_b1k
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import trainable
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state, full

TREE = {
    "vision": {"layers": {"attn": {"q": {"kernel": 1, "bias": 2, "lora_a": 3, "lora_b": 4}}}, "pos_embedding": 5},
    "vlm": {"embedder": {"embedding": 6}, "final_norm": {"scale": 7}},
    "action_expert": {"final_norm": {"modulation": {"kernel": 8}}},
    "suffix": {"action_in": {"kernel": 9}},
    "point_cloud": {"out": {"kernel": 10}},
}


def frozen(*roles, **changes):
    return dataclasses.replace(debug.CONFIG, freeze=roles, **changes)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("vision/layers/attn/q/kernel", "vision"),
        ("vlm/embedder/embedding", "language"),
        ("action_expert/layers/mlp/down/kernel", "action_expert"),
        ("suffix/action_in/bias", "projections"),
        ("point_cloud/out/kernel", "projections"),
        ("vlm/layers/mlp/down/lora_a", "lora"),
        ("vision/layers/attn/q/lora_b", "lora"),
    ],
)
def test_the_first_name_tells_the_role_and_adapters_are_a_group_of_their_own(path, role):
    assert trainable.role_of(path) == trainable.role_of(tuple(path.split("/"))) == role


def test_a_parameter_of_no_role_is_refused():
    with pytest.raises(KeyError, match="wheels/kernel belongs to no group; groups are told by the names vision, vlm"):
        trainable.role_of("wheels/kernel")


def test_partition_takes_apart_what_combine_puts_together():
    trained, kept = trainable.partition(TREE, frozen("vision", "projections"))
    assert trained == {
        "vision": {"layers": {"attn": {"q": {"lora_a": 3, "lora_b": 4}}}},
        "vlm": TREE["vlm"],
        "action_expert": TREE["action_expert"],
    }
    assert kept == {
        "vision": {"layers": {"attn": {"q": {"kernel": 1, "bias": 2}}}, "pos_embedding": 5},
        "suffix": TREE["suffix"],
        "point_cloud": TREE["point_cloud"],
    }
    assert trainable.combine(trained, kept) == TREE
    assert trainable.partition(TREE, frozen()) == (TREE, {})


def test_of_a_leaf_that_two_trees_have_the_last_counts():
    assert trainable.combine({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_adapters_and_the_kernels_they_modify():
    attn = {"layers": {"attn": {"q": {"lora_a": 3, "lora_b": 4}}}}
    assert trainable.adapters(TREE) == {"vision": attn}
    assert trainable.adapted_kernels(TREE) == {"vision": {"layers": {"attn": {"q": {"kernel": 1}}}}}
    assert trainable.combine(trainable.without_adapters(TREE), trainable.adapters(TREE)) == TREE


def test_groups_are_in_order_and_hold_every_leaf_once():
    found = trainable.groups(TREE)
    assert found == {
        "vision": [1, 2, 5],
        "language": [6, 7],
        "action_expert": [8],
        "projections": [9, 10],
        "lora": [3, 4],
    }
    assert list(found) == list(trainable.GROUPS)
    assert list(trainable.groups({"vlm": TREE["vlm"]})) == ["language"]


@pytest.mark.parametrize("train_expert_only", [False, True])
def test_frozen_kernels_and_embeddings_are_stored_as_activations_and_all_else_in_float32(train_expert_only):
    model = dataclasses.replace(debug.CONFIG.model, dtype="bfloat16")
    config = frozen("projections", model=model, train_expert_only=train_expert_only)
    params = jax.eval_shape(lambda: trainable.as_stored(Model(model).init_params(jax.random.key(0)), config))
    roles = {"suffix", "vision", "vlm"} if train_expert_only else {"suffix"}
    for path, leaf in flatten(params).items():
        first, *_, last = path.split("/")
        is_half = first in roles and last in ("kernel", "embedding")
        assert leaf.dtype == (jnp.bfloat16 if is_half else jnp.float32), path
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32"), jnp.dtype("bfloat16")}


def test_the_table_has_openpis_counts_at_full_size(data_dir):
    published = json.loads((data_dir / "openpi_full_size_parameters.json").read_text())["pi05"]
    config = dataclasses.replace(pi05_b1k.CONFIG, train_expert_only=True)
    mesh = AbstractMesh((1, 8), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    params = full(abstract_state(Model(config.model), make_optimizer(config), config, mesh))
    rows = {row.name: row for row in trainable.table(config, params)}
    assert {name: row.num_parameters for name, row in rows.items()} == published["by_group"]
    assert {name: row.is_trained for name, row in rows.items()} == {
        "vision": False,
        "language": False,
        "action_expert": True,
        "projections": True,
    }
    assert rows["language"].dtypes == rows["vision"].dtypes == ("bfloat16", "float32")
    assert rows["action_expert"].dtypes == ("float32",)
    for row in rows.values():
        assert row.bytes_per_device == pytest.approx(row.num_parameters * (4 if row.is_trained else 2) / 8, rel=0.02)
    assert str(rows["language"]).split() == (
        f"language 2,508,531,712 frozen {rows['language'].bytes_per_device:,} bytes of bfloat16, float32".split()
    )


def test_bytes_per_device_are_those_of_its_shards():
    config = frozen("vision", fsdp=4)
    mesh = jax.make_mesh((1, 4), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    abstract = full(abstract_state(Model(config.model), make_optimizer(config), config, mesh))
    arrays = [jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for leaf in jax.tree.leaves(abstract)]
    device = jax.devices()[1]
    held = [shard.data.nbytes for leaf in arrays for shard in leaf.addressable_shards if shard.device == device]
    assert trainable.bytes_per_device(abstract) == sum(held)
    assert trainable.count(abstract) == sum(leaf.size for leaf in arrays)


def test_adapters_are_trained_whatever_is_frozen():
    model = dataclasses.replace(debug.CONFIG.model, lora=LoraConfig(language=AdapterConfig(rank=2)))
    config = frozen(*trainable.ROLES, model=model)
    assert trainable.is_trained("vlm/layers/mlp/down/lora_b", config)
    assert not trainable.is_trained("vlm/layers/mlp/down/kernel", config)
    assert trainable.stored_dtype("vlm/layers/mlp/down/lora_b", config) == jnp.float32
