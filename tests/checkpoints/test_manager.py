import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.checkpoints import contents, manager, openpi_rules, orbax_tree
from openpi_b1k.checkpoints.failures import CheckpointError
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.config.model import GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.config.train import CheckpointConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.transforms.normalize import FieldStats, NormStats

MODEL = Model(debug.CONFIG.model)
OPENPIS_SIZE = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    action_expert=GemmaConfig(width=32, depth=4, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16),
    vocab_size=512,
)
"""Of the stored checkpoint that openpi wrote."""
CONFIG = dataclasses.replace(debug.CONFIG, name="debug", exp_name="run")


def params_shardings(fsdp):
    return sharding.param_shardings(sharding.make_mesh(fsdp), MODEL.abstract_params(), MODEL.logical_axes())


def make_weights(seed, fsdp=1):
    rng = np.random.default_rng(seed)
    values = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), MODEL.abstract_params())
    return jax.device_put(values, params_shardings(fsdp))


def make_rest(step, **more):
    place = sharding.replicated(sharding.make_mesh(1))
    rest = {"step": jnp.int32(step), "opt_state": ({"mu": jnp.full(4, float(step))}, None)}
    return jax.device_put(rest, place) | more


def make_items(step):
    return {"params": make_weights(step), "train_state": make_rest(step)}


def abstract(tree, fsdp=None):
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
    if fsdp is None:
        return described
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        described,
        params_shardings(fsdp),
    )


def make_files(step):
    stats = FieldStats(*(np.arange(23.0) + offset for offset in (0.0, 1.0, -1.0, 2.0)))
    assets = contents.Assets(NormStats(stats, stats), {"radio": "turn on the radio"}, b"sentencepiece")
    info = contents.CheckpointInfo(step, step * 8, "fingerprint", False, contents.code_version())
    return contents.files(CONFIG, info, assets)


def save_some(run, steps, *, keep_last=1, keep_every=None, save_every=1):
    checkpoints = manager.CheckpointManager(run, CheckpointConfig(save_every, keep_last, keep_every))
    for step in steps:
        checkpoints.save(step, make_items(step), make_files(step))
    checkpoints.close()


def wait_for_error(checkpoints):
    """Does what the loop does: asks after each step, and does not wait."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.01)


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_what_is_restored_is_what_was_saved_also_onto_another_mesh(tmp_path):
    weights, rest = make_weights(0), make_rest(3, params=make_weights(1))
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig())
    checkpoints.save(3, {"params": weights, "train_state": rest}, make_files(3))
    checkpoints.close()
    for fsdp in (1, 4):
        wanted = abstract(rest) | {"params": abstract(rest["params"], fsdp)}
        found = manager.restore(tmp_path / "3", {"params": abstract(weights, fsdp), "train_state": wanted})
        assert_equal_trees(found, {"params": weights, "train_state": rest})
        assert jax.tree.map(lambda leaf: leaf.sharding, found["params"]) == params_shardings(fsdp)
        assert jax.tree.map(lambda leaf: leaf.sharding, found["train_state"]["params"]) == params_shardings(fsdp)


def test_a_checkpoint_is_not_moved_by_steps_that_reuse_its_memory(tmp_path):
    weights, rest = make_weights(0, fsdp=4), make_rest(3)
    expected = jax.device_get(weights)
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig())
    checkpoints.save(3, {"params": weights, "train_state": rest}, make_files(3))
    for _ in range(5):
        weights = advance(weights)
    checkpoints.close()
    assert_equal_trees(manager.restore(tmp_path / "3", {"params": abstract(weights)})["params"], expected)


def test_params_are_named_typed_and_shaped_as_openpis(tmp_path, data_dir):
    save_some(tmp_path, [7])
    ours, theirs = (
        json.loads((run / "7" / "params" / "_METADATA").read_text())["tree_metadata"]
        for run in (tmp_path, data_dir / "openpi_checkpoint")
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name]["key_metadata"] == theirs[name]["key_metadata"]
        assert ours[name]["value_metadata"]["value_type"] == theirs[name]["value_metadata"]["value_type"] == "jax.Array"


def test_a_model_of_openpis_size_has_its_shapes_and_types_on_disk(tmp_path, data_dir):
    model = Model(OPENPIS_SIZE)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.abstract_params())
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig())
    checkpoints.save(7, {"params": zeros, "train_state": make_rest(7)}, make_files(7))
    checkpoints.close()
    ours, theirs = (orbax_tree.shapes(run / "7" / "params") for run in (tmp_path, data_dir / "openpi_checkpoint"))
    assert ours == theirs


def test_openpis_restore_code_reads_it(tmp_path):
    """As openpi's `models/model.py: restore_params` does it, with its item and restore arguments."""
    save_some(tmp_path, [7])
    place = sharding.replicated(sharding.make_mesh(1))
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = tmp_path / "7" / "params"
        metadata = checkpointer.metadata(path)
        tree = getattr(metadata.item_metadata, "tree", metadata)
        item = {"params": tree["params"]}
        args = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(
                lambda _: ocp.ArrayRestoreArgs(sharding=place, restore_type=jax.Array, dtype=np.float32), item
            ),
        )
        found = checkpointer.restore(path, args)["params"]
    assert_equal_trees({"params": found}, openpi_rules.with_value_leaves(openpi_rules.to_openpi(make_weights(7))))


def test_files_lie_beside_the_arrays(tmp_path):
    save_some(tmp_path, [7])
    checkpoint = tmp_path / "7"
    assert contents.read_config(checkpoint) == CONFIG
    info = contents.read_info(checkpoint)
    assert (info.completed_steps, info.samples_consumed, info.data_fingerprint) == (7, 56, "fingerprint")
    assert info.code_version
    assets = contents.read_assets(checkpoint)
    assert assets.prompts == {"radio": "turn on the radio"}
    assert assets.tokenizer == b"sentencepiece"
    np.testing.assert_array_equal(assets.norm_stats.state.q99, np.arange(23) + 2)
    stored = json.loads((checkpoint / "assets/behavior-1k/2025-challenge-demos/norm_stats.json").read_text())
    assert stored["norm_stats"]["actions"]["mean"] == list(range(23))


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"), [(1, None, [6]), (2, None, [5, 6]), (1, 2, [2, 4, 6]), (2, 3, [3, 5, 6])]
)
def test_the_newest_and_every_nth_are_kept(tmp_path, keep_last, keep_every, kept):
    save_some(tmp_path, range(1, 7), keep_last=keep_last, keep_every=keep_every)
    assert contents.completed_checkpoints(tmp_path) == kept


def test_a_half_written_checkpoint_is_not_seen_and_goes_when_the_run_does_on(tmp_path):
    save_some(tmp_path, [1])
    partial = tmp_path / "2.orbax-checkpoint-tmp"
    (partial / "params").mkdir(parents=True)
    assert contents.completed_checkpoints(tmp_path) == [1]
    save_some(tmp_path, [2])
    assert not partial.exists()
    assert contents.completed_checkpoints(tmp_path) == [2]


def test_a_failure_leaves_no_checkpoint(tmp_path):
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig())
    impossible = {"assets/file": b"", "assets/file/below": b""}
    with pytest.raises(CheckpointError, match=r"checkpoint 1 could not be written; those before are kept in .*assets"):
        checkpoints.save(1, make_items(1), make_files(1) | impossible)
    checkpoints.close()
    assert contents.completed_checkpoints(tmp_path) == []


def test_an_error_in_the_background_surfaces(tmp_path, monkeypatch):
    def finalize(*_):
        raise OSError("broken pipe")

    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig())
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", finalize)
    checkpoints.save(1, make_items(1), make_files(1))
    with pytest.raises(CheckpointError, match=r"checkpoint 1 could not be written.*OSError: broken pipe"):
        wait_for_error(checkpoints)
    checkpoints.close()
    assert contents.completed_checkpoints(tmp_path) == []


def test_training_cannot_continue_from_weights_alone(tmp_path):
    save_some(tmp_path, [7])
    (tmp_path / "7" / "train_state").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"has no train_state/.*--weights .*7"):
        manager.restore(tmp_path / "7", abstract(make_items(7)))
    params = load_params(tmp_path / "7", MODEL.abstract_params(), params_shardings(1))
    assert_equal_trees(params, make_weights(7))


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path, data_dir):
    theirs = data_dir / "openpi_checkpoint" / "7"
    for read in (contents.read_config, contents.read_info, contents.read_assets):
        with pytest.raises(FileNotFoundError, match="a checkpoint of openpi_b1k has"):
            read(theirs)
    (tmp_path / "checkpoint.json").write_text('{"schema_version": 2, "completed_steps": 3, "colour": "red"}')
    with pytest.raises(ValueError, match="not of this version"):
        contents.read_info(tmp_path)
    (tmp_path / "checkpoint.json").write_text('{"completed_steps": 3, "code_version": "0.1 abc"}')
    with pytest.raises(
        ValueError, match=r"schema version 1, and this code reads and writes 2: use the .*0\.1 abc.*--w"
    ):
        contents.read_info(tmp_path)
