"""Faults that conversions had elsewhere, planted: each must show at a stage."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from openpi_b1k.checkpoints import pytorch_rules
from openpi_b1k.conversion import gate
from openpi_b1k.conversion.probe import probe
from tests.conversion.conversion_cases import recipe
from tests.models.conftest import CONFIG as TWO_KV_HEADS

MODEL = dataclasses.replace(TWO_KV_HEADS, max_prompt_tokens=8)
VLM = "paligemma_with_expert.paligemma.model.language_model"
EXPERT = "paligemma_with_expert.gemma_expert.model"
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model"


@pytest.fixture(scope="module")
def params():
    """Returns random parameters, none of them zero."""
    random = np.random.default_rng(0)
    shapes = pytorch_rules.shapes(MODEL)
    return {name: random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tensors(params):
    return {key: np.array(part) for name, leaf in params.items() for key, part in pytorch_rules.to_pytorch(name, leaf)}


@pytest.fixture(scope="module")
def reference(params):
    return list(gate.in_jax(params.__getitem__, MODEL, probe(recipe(MODEL))))


def compared(reference, tensors):
    return list(gate.compare(reference, gate.in_torch(tensors.__getitem__, MODEL, probe(recipe(MODEL)))))


def test_a_right_conversion_is_far_within_the_limit(reference, tensors):
    rows = compared(reference, tensors)
    assert max(row.relative for row in rows) < gate.LIMIT / 5
    assert [row.stage for row in rows[:3]] == ["vision", "prefix layer 0 keys", "prefix layer 0 values"]
    assert [row.stage for row in rows[-2:]] == ["velocity", "actions"]


def swapped_heads(tensor):
    heads = tensor.reshape(MODEL.vlm.num_heads, -1, tensor.shape[-1])
    return heads[[1, 0, *range(2, len(heads))]].reshape(tensor.shape)


FAULTS = {
    "two heads swapped": (f"{VLM}.layers.0.self_attn.q_proj.weight", swapped_heads, "prefix layer 1 keys"),
    "a square kernel transposed": (f"{VISION}.encoder.layers.0.self_attn.q_proj.weight", np.transpose, "vision"),
    "a norm without its one": (
        f"{VLM}.layers.0.input_layernorm.weight",
        lambda scale: scale - 1,
        "prefix layer 0 keys",
    ),
    "rows of a kernel in reverse": (
        f"{VLM}.layers.1.self_attn.k_proj.weight",
        lambda kernel: kernel[::-1],
        "prefix layer 1 keys",
    ),
    "a bias left out": (f"{EXPERT}.norm.dense.bias", np.zeros_like, "velocity"),
    "gate taken for up": (f"{EXPERT}.layers.1.mlp.up_proj.weight", "gate", "velocity"),
    "no number": (f"{VLM}.layers.1.self_attn.v_proj.weight", lambda kernel: kernel * np.nan, "prefix layer 1 values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_where_it_first_shows(reference, tensors, fault):
    key, change, stage = FAULTS[fault]
    changed = tensors[key.replace("up_proj", "gate_proj")] if change == "gate" else change(tensors[key])
    assert changed.shape == tensors[key].shape
    rows = compared(reference, tensors | {key: np.ascontiguousarray(changed)})
    assert next(row.stage for row in rows if not row.relative <= gate.LIMIT) == stage


def test_what_is_beyond_the_limit_is_refused_with_the_table(params, tensors):
    wrong = tensors | {"action_in_proj.weight": np.ascontiguousarray(tensors["action_in_proj.weight"] * 1.01)}
    with pytest.raises(
        gate.GateError, match=r"2 of 7 stages differ by more than 0\.0001, the first is 'velocity'"
    ) as got:
        gate.check(recipe(MODEL), params.__getitem__, wrong.__getitem__)
    text = str(got.value)
    assert text.count("BEYOND") == 2
    assert "prefix layer 1 values" in text


def test_a_row_by_hand():
    expected, found = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    [row] = gate.compare([("a", expected)], [("a", found)])
    assert (row.largest_difference, row.rms) == (0.5, pytest.approx(12.5**0.5))
    assert row.relative == pytest.approx(0.5 / 12.5**0.5)
    [row] = gate.compare([("a", np.zeros(2))], [("a", np.ones(2))])
    assert row.relative == np.inf
    [row] = gate.compare([("a", np.zeros(2))], [("a", np.zeros(2))])
    assert row.relative == 0


def test_other_stages_or_shapes_are_refused():
    with pytest.raises(gate.GateError, match=r"stage 'a' \(2,\) was compared with 'b' \(2,\)"):
        list(gate.compare([("a", np.zeros(2))], [("b", np.zeros(2))]))
    with pytest.raises(gate.GateError, match=r"stage 'a' \(2,\) was compared with 'a' \(3,\)"):
        list(gate.compare([("a", np.zeros(2))], [("a", np.zeros(3))]))
    with pytest.raises(ValueError, match="shorter"):
        list(gate.compare([("a", np.zeros(2)), ("b", np.zeros(2))], [("a", np.zeros(2))]))
