"""Our converter against openpi's, there and back, and what it refuses."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from openpi_b1k.checkpoints import contents, pytorch_rules, weights
from openpi_b1k.conversion import from_pytorch, gate, record, to_pytorch
from openpi_b1k.conversion.source import describe
from tests.conversion.conversion_cases import STORED, recipe, tensors_of

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(data_dir):
    return data_dir / "openpi_checkpoint" / "7"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "float32"
    to_pytorch.convert(str(checkpoint), output, recipe=recipe())
    return output


def test_its_file_is_openpis_tensor_by_tensor(exported, data_dir):
    ours, theirs = (tensors_of(path / "model.safetensors") for path in (exported, data_dir / "openpi_pytorch"))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 116
    assert not ours.pop(pytorch_rules.FILLED_WITH_ZEROS).any()  # openpi's is random, as nothing reads it
    for key, tensor in ours.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, theirs[key], err_msg=key)


def test_the_safetensors_package_reads_it(exported):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    loaded, ours = safetensors_torch.load_file(exported / "model.safetensors"), tensors_of(exported)
    assert loaded.keys() == ours.keys()
    for key, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[key])


def test_a_directory_says_where_it_comes_from(exported, checkpoint):
    assert sorted(path.name for path in exported.iterdir()) == [
        "assets", "checkpoint.json", "config.json", "conversion.json", "model.safetensors"
    ]  # fmt: skip
    stored = json.loads((exported / "conversion.json").read_text())
    assert stored["source"] == str(checkpoint)
    assert (stored["dtype"], stored["weights_kind"], stored["layout"]) == ("float32", "ema", "openpi")
    assert (stored["model_type"], stored["max_token_len"]) == ("pi05", 24)
    assert stored["openpi"] == {
        "action_dim": 32, "action_horizon": 32, "paligemma_variant": "other", "action_expert_variant": "other",
        "precision": "float32",
    }  # fmt: skip
    assert stored["sha256"] == record.sha256(exported / "model.safetensors")
    assert len(stored["gate"]) == 3 + 2 * 4
    assert all(row["relative"] < gate.LIMIT for row in stored["gate"])
    assert contents.read_config(exported) == recipe()
    assert contents.read_info(exported).completed_steps == 7
    stats = next(checkpoint.rglob("norm_stats.json"))
    np.testing.assert_array_equal(
        contents.read_assets(exported).norm_stats.state.q99, json.loads(stats.read_text())["norm_stats"]["state"]["q99"]
    )


def test_bfloat16_is_for_what_is_computed_in_it(checkpoint, exported, tmp_path):
    rows = to_pytorch.convert(str(checkpoint), tmp_path / "out", recipe=recipe(), dtype="bfloat16")
    assert max(row.relative for row in rows) < gate.LIMIT
    half, full = tensors_of(tmp_path / "out"), tensors_of(exported)
    for key, tensor in half.items():
        # openpi's models keep norms, patch and position embeddings in float32 at run time, and their projections.
        is_float32 = "norm" in key or "embeddings" in key or not key.startswith("paligemma_with_expert")
        assert tensor.dtype.name == ("float32" if is_float32 else "bfloat16"), key
        np.testing.assert_array_equal(tensor, full[key].astype(tensor.dtype), err_msg=key)


def test_there_and_back_to_the_bit(exported, checkpoint, tmp_path):
    from_pytorch.convert(str(exported), tmp_path / "back")
    original, back = weights.open_weights(checkpoint), weights.open_weights(tmp_path / "back")
    assert back.leaves.keys() == original.leaves.keys()
    for name in original.leaves:
        np.testing.assert_array_equal(back.read(name), original.read(name), err_msg=name)
    assert contents.read_config(tmp_path / "back") == recipe()
    assert contents.read_assets(tmp_path / "back").prompts == {}
    rows = to_pytorch.convert(str(tmp_path / "back"), tmp_path / "again")  # needs no recipe any more
    assert rows
    for key, tensor in tensors_of(tmp_path / "again").items():
        np.testing.assert_array_equal(tensor, tensors_of(exported)[key])


def test_openpis_own_file_becomes_a_checkpoint(data_dir, checkpoint, tmp_path):
    model, stats = data_dir / "openpi_pytorch" / "model.safetensors", next(checkpoint.rglob("norm_stats.json"))
    from_pytorch.convert(str(model), tmp_path / "out", recipe=recipe(), norm_stats=stats)
    original, found = weights.open_weights(checkpoint), weights.open_weights(tmp_path / "out")
    for name in original.leaves:
        np.testing.assert_array_equal(found.read(name), original.read(name), err_msg=name)
    types = {leaf.dtype for leaf in jax.tree.leaves(dict(found.leaves))}
    assert types == {np.dtype(np.float32)}


def test_a_file_that_computes_something_else_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    """A mistake in the table: queries of two heads change places."""
    right = pytorch_rules.to_pytorch

    def wrong(name, array):
        return right(name, array[:, ::-1] if name == "vlm/layers/attn/q/kernel" else array)

    monkeypatch.setattr(pytorch_rules, "to_pytorch", wrong)
    with pytest.raises(gate.GateError, match="the first is 'prefix layer 1 keys'"):
        to_pytorch.convert(str(checkpoint), tmp_path / "out", recipe=recipe())
    assert list(tmp_path.iterdir()) == []


def refused(checkpoint, output, error, match, **options):
    with pytest.raises(error, match=match):
        to_pytorch.convert(str(checkpoint), output, **{"recipe": recipe()} | options)
    assert not output.exists()
    assert not list(output.parent.glob(".*converting"))


def test_wrong_models_are_refused(checkpoint, tmp_path):
    output = tmp_path / "out"
    pi0 = dataclasses.replace(STORED, kind="pi0")
    refused(checkpoint, output, ValueError, "holds a model of kind pi05", recipe=recipe(pi0))
    wider = dataclasses.replace(STORED, action_dim=24)
    refused(checkpoint, output, ValueError, "--model.action-dim", recipe=recipe(wider))
    refused(checkpoint, output, FileNotFoundError, "give --recipe NAME", recipe=None)
    refused(checkpoint, output, ValueError, "--layout lerobot cannot hold this model", layout="lerobot")


def test_norm_stats_are_needed(checkpoint, tmp_path):
    bare = tmp_path / "7"
    shutil.copytree(checkpoint / "params", bare / "params")
    refused(bare, tmp_path / "out", FileNotFoundError, "no norm stats at .*; give --norm-stats FILE")
    stats = next(checkpoint.rglob("norm_stats.json"))
    source = describe(bare / "params", recipe(), stats)
    assert source.info.completed_steps == 7
    for name in ("droid", "trossen"):
        (bare / "assets" / name).mkdir(parents=True)
        shutil.copy(stats, bare / "assets" / name / "norm_stats.json")
    refused(bare, tmp_path / "out", ValueError, "several data sets .*droid.*trossen.*--norm-stats")


def test_a_recipe_beside_a_config_is_refused(exported):
    with pytest.raises(ValueError, match="has a config of its own; leave out --recipe"):
        describe(exported, recipe(), None)


def script(name, *args):
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    return done.returncode, done.stdout + done.stderr


def test_the_scripts_refuse_before_any_work(checkpoint, exported, tmp_path):
    arguments = ("--checkpoint", checkpoint, "--output", tmp_path / "out")
    code, text = script("convert_to_pytorch.py", *arguments, "--dtype", "float16")
    assert (code, "invalid choice: 'float16'" in text) == (2, True)
    code, text = script("convert_to_pytorch.py", *arguments, "--model.action-dim", 7)
    assert (code, "a recipe's flags need --recipe NAME" in text) == (2, True)
    code, text = script("convert_from_pytorch.py", "--input", exported, "--output", exported)
    assert (code, "exists; give another --output" in text, "Traceback" in text) == (2, True, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_scripts_convert(exported, tmp_path):
    code, text = script("convert_from_pytorch.py", "--input", exported, "--output", tmp_path / "back")
    assert (code, "velocity" in text, f"converted: {tmp_path / 'back'}" in text) == (0, True, True)
    arguments = ("--checkpoint", tmp_path / "back", "--output", tmp_path / "half", "--dtype", "bfloat16")
    code, text = script("convert_to_pytorch.py", *arguments)
    assert (code, f"converted: {tmp_path / 'half'}" in text) == (0, True)
