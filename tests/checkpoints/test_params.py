import dataclasses
import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.checkpoints import openpi_rules
from openpi_b1k.checkpoints.orbax_weights import find_live, find_params
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.models.pi0 import Model

# The sizes of the stored checkpoint: fixtures' README, `meta` of pi05_f32.npz.
STORED = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    action_expert=GemmaConfig(width=32, depth=4, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16),
    vocab_size=512,
    dtype="float32",
)


def shardings_of(model, fsdp=4):
    return sharding.param_shardings(sharding.make_mesh(fsdp), model.abstract_params(), model.logical_axes())


def load(path, config=STORED, **options):
    model = Model(config)
    return load_params(path, model.abstract_params(), shardings_of(model), **options)


def halves(data_dir):
    """Returns the weights the checkpoint was written from, under our names."""
    with np.load(data_dir / "pi05_f32.npz") as file:
        theirs = {name.removeprefix("params/"): file[name] / 2 for name in file.files if name.startswith("params/")}
    tree: dict = {}
    for name, value in theirs.items():
        node = tree
        *parents, leaf = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return openpi_rules.from_openpi(tree)


@pytest.mark.parametrize("where", ["7", "7/params"])
def test_openpis_checkpoint_is_read_into_shards(data_dir, where, caplog):
    with caplog.at_level(logging.INFO):
        params = load(data_dir / "openpi_checkpoint" / where)
    expected = flatten(halves(data_dir))
    loaded = flatten(params)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings_of(Model(STORED))
    assert "weights: 51 arrays" in caplog.text
    assert "1 x action_in_proj/{kind}" not in caplog.text  # kernel and bias
    assert "2 x action_in_proj/{kind} -> suffix/action_in_proj/{kind}" in caplog.text


def test_the_live_weights_are_openpis_train_state(data_dir):
    live = flatten(load(data_dir / "openpi_checkpoint" / "7", kind="live"))
    for name, value in flatten(halves(data_dir)).items():
        np.testing.assert_array_equal(live[name], value * 2, err_msg=name)


def test_live_weights_are_not_guessed(data_dir, tmp_path):
    shutil.copytree(data_dir / "openpi_checkpoint" / "7" / "params", tmp_path / "params")
    assert find_params(tmp_path) == tmp_path / "params"
    with pytest.raises(FileNotFoundError, match=r"has no train_state/, so whether params/ holds live weights"):
        find_live(tmp_path / "params")


def test_live_weights_of_a_run_with_frozen_groups_lie_over_those_to_act_with(tmp_path):
    """`train_state/` then holds the trained groups alone."""
    model = Model(STORED)
    acting, live = (jax.jit(model.init_params)(jax.random.key(seed)) for seed in (1, 2))
    trained = {"suffix": live["suffix"]}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", openpi_rules.with_value_leaves(openpi_rules.to_openpi(acting)))
        item = openpi_rules.with_value_leaves(openpi_rules.to_openpi(trained)) | {"step": np.int32(3)}
        checkpointer.save(tmp_path / "train_state", item)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path, kind="live"), acting | trained)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path), acting)


def test_frozen_kernels_are_read_in_bfloat16(tmp_path):
    model = Model(STORED)
    weights = jax.jit(model.init_params)(jax.random.key(1))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", openpi_rules.with_value_leaves(openpi_rules.to_openpi(weights)))
    abstract = model.abstract_params()
    abstract["vlm"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.bfloat16), abstract["vlm"])
    params = load_params(tmp_path, abstract, shardings_of(model))
    expected = weights | {"vlm": jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), weights["vlm"])}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params["vlm"])} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_weights_without_value_leaves_are_read_and_cast(data_dir, tmp_path):
    weights = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), halves(data_dir))
    item = {"params": openpi_rules.to_openpi(weights)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", item)
    for name, value in flatten(load(tmp_path)).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, np.asarray(flatten(weights)[name], np.float32), err_msg=name)


def test_another_size_is_refused_with_the_flags_that_set_it(data_dir):
    wide = dataclasses.replace(STORED.vlm, mlp_dim=256)
    with pytest.raises(ValueError, match="model of another size") as error:
        load(data_dir / "openpi_checkpoint" / "7", dataclasses.replace(STORED, vlm=wide, image_size=28))
    message = str(error.value)
    assert "vlm/layers/mlp/down/kernel is (4, 128, 64) there and (4, 256, 64) here (--model.vlm.*)" in message
    assert "vision/pos_embedding is (1, 256, 32) there and (1, 4, 32) here (--model.image-size" in message
    with pytest.raises(ValueError, match="and 18 more"):
        load(data_dir / "openpi_checkpoint" / "7", debug.CONFIG.model)


def test_parameters_that_are_not_the_models_are_refused(data_dir, tmp_path):
    theirs = openpi_rules.to_openpi(halves(data_dir))
    del theirs["action_in_proj"]["bias"]
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "less", {"params": theirs})
        checkpointer.save(tmp_path / "more", {"params": theirs | {"state_projection": {"kernel": np.zeros(3)}}})
        checkpointer.save(tmp_path / "else", {"model": theirs})
    with pytest.raises(ValueError, match=r"missing 'suffix/action_in_proj/bias'"):
        load(tmp_path / "less")
    with pytest.raises(ValueError, match=r"no rule for 'state_projection/kernel'; nearest rules: 'state_proj/{kind}'"):
        load(tmp_path / "more")
    with pytest.raises(ValueError, match=r"has no root 'params'.*'model'"):
        load(tmp_path / "else")


SEEING = dataclasses.replace(STORED, point_clouds=True)


def test_an_encoder_that_is_not_stored_starts_from_random_numbers(data_dir, caplog):
    model, asked = Model(SEEING), []
    fresh = jax.jit(model.init_params)(jax.random.key(0))["point_cloud"]

    def draw(groups):
        asked.append(groups)
        return {"point_cloud": fresh}

    with caplog.at_level(logging.WARNING):
        params = load(data_dir / "openpi_checkpoint" / "7", SEEING, draw=draw)
    assert asked == [["point_cloud"]]
    assert params.pop("point_cloud") is fresh
    for name, value in flatten(halves(data_dir)).items():
        np.testing.assert_array_equal(flatten(params)[name], value, err_msg=name)
    assert "so they start from random numbers: point_cloud" in caplog.text


def test_nothing_is_drawn_without_being_asked_for(data_dir):
    with pytest.raises(ValueError, match="missing 'point_cloud/mlp_hidden/bias'"):
        load(data_dir / "openpi_checkpoint" / "7", SEEING)
    load(data_dir / "openpi_checkpoint" / "7", draw=lambda groups: pytest.fail(f"drew {groups}"))


def test_a_stored_encoder_is_read_and_half_a_one_is_refused(tmp_path):
    model = Model(SEEING)
    weights = jax.jit(model.init_params)(jax.random.key(1))
    item = openpi_rules.with_value_leaves(openpi_rules.to_openpi(weights))
    assert item["params"]["point_cloud"].keys() == {"mlp_in", "mlp_hidden", "mlp_out"}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "whole", item)
        del item["params"]["point_cloud"]["mlp_out"]
        checkpointer.save(tmp_path / "half", item)
    params = load(tmp_path / "whole", SEEING, draw=lambda groups: pytest.fail(f"drew {groups}"))
    jax.tree.map(np.testing.assert_array_equal, params, weights)
    with pytest.raises(ValueError, match="missing 'point_cloud/mlp_out/bias'"):
        load(tmp_path / "half", SEEING, draw=lambda groups: pytest.fail(f"drew {groups}"))
    with pytest.raises(ValueError, match="unknown 'point_cloud/mlp_hidden/bias'"):
        load(tmp_path / "whole")


def test_a_directory_without_weights_is_refused(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="give a checkpoint's directory or its params directory"):
        find_params(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it is a run's directory; .* such as .*openpi_checkpoint/7"):
        find_params(data_dir / "openpi_checkpoint")
