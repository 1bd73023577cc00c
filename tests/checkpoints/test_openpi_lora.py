import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openpi_b1k import sharding
from openpi_b1k.checkpoints import openpi_lora, openpi_rules
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.checkpoints.weights import open_weights
from openpi_b1k.evaluation import parity_model
from openpi_b1k.models.pi0 import Model

NAME = "pi05_lora_f32.npz"
SCALE = 2.0  # fixtures' README
LAYERS = "PaliGemma/llm/layers"


@pytest.fixture(scope="module")
def reference(data_dir):
    with np.load(data_dir / NAME) as file:
        return dict(file)


@pytest.fixture(scope="module")
def leaves(reference):
    """Returns the stored parameters under openpi's names."""
    return {name.removeprefix("params/"): leaf for name, leaf in reference.items() if name.startswith("params/")}


def save(path, leaves):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "params", openpi_rules.with_value_leaves(unflatten(leaves)))
    return path


@pytest.fixture(scope="module")
def checkpoint(leaves, tmp_path_factory):
    return save(tmp_path_factory.mktemp("lora"), leaves)


def head_by_head(leaves, parent):
    """Returns an attention kernel as openpi computes with it: by loops over heads, in float64."""
    w, a, b = (leaves[f"{LAYERS}/attn/{parent}/{name}"].astype(np.float64) for name in ("w", "lora_a", "lora_b"))
    merged = w.copy()
    for index in np.ndindex(w.shape[:-2]):
        others = [(index[0], head) for head in range(w.shape[1])] if parent.startswith("attn_vec") else [index]
        for other in others:
            merged[index] += SCALE * (a[index] @ b[other])
    return merged


def test_outputs_are_those_that_openpi_computes_with_its_adapters(reference, checkpoint):
    meta = json.loads(bytes(reference["meta"]))
    config = parity_model.model_config(meta, reference)
    model = Model(config)
    shardings = sharding.param_shardings(sharding.make_mesh(4), model.abstract_params(), model.logical_axes())
    params = load_params(checkpoint, model.abstract_params(), shardings, lora_scale=SCALE)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), params)
    noise, time = (jax.numpy.asarray(reference[f"input/{name}"]) for name in ("noise", "time"))
    ours, _ = parity_model.run(model, params, parity_model.stored_batch(reference), noise, time)
    for name in ("actions_10_steps", "actions_3_steps"):
        np.testing.assert_allclose(ours[name], reference[f"output/{name}"], rtol=0, atol=2e-5, err_msg=name)
    # Of the largest entry, 4: with these weights the last bit of the flow time moves a velocity by 1.1e-4, and that of
    # a rotary frequency by 3e-5, and the libraries differ there.
    for name in ("suffix_out", "velocity"):
        expected = reference[f"output/{name}"]
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)
    for name in ("loss", "loss_per_step"):
        np.testing.assert_allclose(ours[name], reference[f"output/{name}"], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("suffix", ["", "_1"])
def test_kernels_are_merged_as_openpi_computes(checkpoint, leaves, suffix):
    weights = open_weights(checkpoint, lora_scale=SCALE)
    root = {"": "vlm", "_1": "action_expert"}[suffix]
    for name, theirs in {"q": "q_einsum", "kv": "kv_einsum", "out": "attn_vec_einsum"}.items():
        found = weights.read(f"{root}/layers/attn/{name}/kernel")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, head_by_head(leaves, f"{theirs}{suffix}"), rtol=1e-5, atol=1e-6)
    for name, theirs in {"gate_up": "gating_einsum", "down": "linear"}.items():
        w, a, b = (leaves[f"{LAYERS}/mlp{suffix}/{theirs}{part}"] for part in ("", "_lora_a", "_lora_b"))
        expected = w + np.einsum("...ir,...ro->...io", a, b)  # alpha / rank is left out in MLPs
        np.testing.assert_allclose(weights.read(f"{root}/layers/mlp/{name}/kernel"), expected, rtol=1e-5, atol=1e-6)


def test_the_scale_of_published_configs_is_the_default(checkpoint, leaves):
    name = "vlm/layers/attn/q/kernel"
    w, a, b = (leaves[f"{LAYERS}/attn/q_einsum/{part}"] for part in ("w", "lora_a", "lora_b"))
    np.testing.assert_allclose(open_weights(checkpoint).read(name), w + a @ b, rtol=1e-5, atol=1e-6)


def test_leaves_are_those_of_the_dense_model(checkpoint, reference):
    weights = open_weights(checkpoint)
    config = parity_model.model_config(json.loads(bytes(reference["meta"])), reference)
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(Model(config).abstract_params()).items()}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in weights.leaves.items()} == expected
    assert weights.model_kind == "pi05"
    matched = {match.source: match.count for match in weights.matches(weights.leaves)}
    assert sum(matched.values()) == 71  # 51 parameters and 20 factors, each by one rule
    assert matched[f"{LAYERS}/attn/q_einsum_1/lora_b"] == 1


def test_frozen_kernels_in_bfloat16_are_merged_in_float32(leaves, tmp_path):
    """openpi's LoRA training keeps what is frozen in bfloat16."""
    key = f"{LAYERS}/mlp/linear"
    rounded = leaves[key].astype(jax.numpy.bfloat16)
    found = open_weights(save(tmp_path, leaves | {key: rounded})).read("vlm/layers/mlp/down/kernel")
    expected = rounded.astype(np.float32) + leaves[f"{key}_lora_a"] @ leaves[f"{key}_lora_b"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_factor_of_the_full_size_model_has_one_rule(data_dir):
    stored = json.loads((data_dir / "openpi_full_size_parameters.json").read_text())["pi05_lora"]["parameters"]
    rules = [*openpi_rules.FROM_OPENPI, *openpi_lora.FROM_OPENPI]
    assert all(sum(rule.apply(name) is not None for rule in rules) == 1 for name in stored)
    ours = {rule.apply(name): shape for name, (shape, _) in stored.items() for rule in rules if rule.apply(name)}
    abstract = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in ours.items()}
    assert len(openpi_lora.adapted_kernels(abstract, "there")) == 10


def test_adapters_that_do_not_fit_are_refused(leaves, tmp_path):
    key = f"{LAYERS}/attn/q_einsum/lora_b"
    alone = save(tmp_path / "alone", {name: leaf for name, leaf in leaves.items() if name != key})
    with pytest.raises(ValueError, match=r"vlm/layers/attn/q/kernel without \['vlm/layers/attn/q/lora_b'\]"):
        open_weights(alone)
    other = save(tmp_path / "other", leaves | {key: leaves[key][..., :3, :]})
    message = "with factors (4, 8, 64, 4) and (4, 8, 3, 16); of rank 4 they would be (4, 8, 64, 4) and (4, 8, 4, 16)"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_weights(other)
