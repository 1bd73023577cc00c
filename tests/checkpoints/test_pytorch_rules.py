import dataclasses
import pathlib

import numpy as np
import pytest

from openpi_b1k.checkpoints import openpi_rules, orbax_tree, pytorch_rules, safetensors
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.models.pi0 import Model

DATA = pathlib.Path(__file__).parents[1] / "data"
FIXTURE = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    action_expert=GemmaConfig(width=32, depth=4, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16),
    vocab_size=512,
    action_horizon=8,
)
GROUPED = dataclasses.replace(GEMMA_TINY, num_heads=6, num_kv_heads=2, head_dim=4, depth=3)
TINY = ModelConfig(
    vision=dataclasses.replace(SIGLIP_TINY, depth=2, width=24),
    vlm=GROUPED,
    action_expert=dataclasses.replace(GROUPED, width=20, mlp_dim=28),
    vocab_size=40,
    image_size=28,
    action_dim=23,
)
SIZES = [ModelConfig(), FIXTURE, TINY]
both_kinds = pytest.mark.parametrize("kind", ["pi05", "pi0"])


def of_kind(config: ModelConfig, kind: str) -> ModelConfig:
    return dataclasses.replace(config, kind=kind, point_clouds=kind == "pi05")


@both_kinds
@pytest.mark.parametrize("size", SIZES, ids=["full", "fixture", "tiny"])
def test_leaves_and_shapes_are_those_of_the_model(size, kind):
    for config in (size, of_kind(size, kind)):
        ours = {name: leaf.shape for name, leaf in flatten(Model(config).abstract_params()).items()}
        assert pytorch_rules.shapes(config) == ours


def test_keys_and_shapes_are_those_of_openpis_file():
    file = safetensors.open_file(DATA / "openpi_pytorch")
    assert pytorch_rules.keys(FIXTURE) == {key: shape for key, (_, shape) in file.tensors.items()}
    assert len(file.tensors) == 116


def test_openpis_checkpoint_becomes_openpis_file_tensor_by_tensor():
    directory = DATA / "openpi_checkpoint" / "7" / "params"
    stored = orbax_tree.shapes(directory)
    ours = flatten(openpi_rules.from_openpi(openpi_rules.without_value_leaves(orbax_tree.read(directory, stored))))
    file = safetensors.open_file(DATA / "openpi_pytorch")
    found = {}
    for name, leaf in ours.items():
        for key, tensor in pytorch_rules.to_pytorch(name, np.asarray(leaf)):
            assert key not in found
            np.testing.assert_array_equal(tensor, file.read(key), err_msg=key, strict=True)
            found[key] = tensor
    assert file.tensors.keys() - found.keys() == {pytorch_rules.FILLED_WITH_ZEROS}


@both_kinds
def test_a_round_trip_moves_every_number_back_to_its_place(kind):
    config = of_kind(TINY, kind)
    numbers = np.random.default_rng(0)
    leaves = {name: numbers.standard_normal(shape, np.float32) for name, shape in pytorch_rules.shapes(config).items()}
    tensors = {key: tensor for name, leaf in leaves.items() for key, tensor in pytorch_rules.to_pytorch(name, leaf)}
    shapes = pytorch_rules.keys(config)
    shapes.pop(pytorch_rules.FILLED_WITH_ZEROS)
    assert {key: tensor.shape for key, tensor in sorted(tensors.items())} == shapes
    for name, leaf in leaves.items():
        back = pytorch_rules.from_pytorch(name, tensors.__getitem__, leaf.shape)
        np.testing.assert_array_equal(back, leaf, strict=True)


def test_heads_lie_as_torch_computes_them():
    """An oracle by loops: row `head * head_dim + entry` of a PyTorch kernel makes that entry of that head."""
    kernel = np.arange(2 * 2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 2, 3, 5, 4)  # layers, k and v, heads, d, h
    for key, tensor in pytorch_rules.to_pytorch("vlm/layers/attn/kv/kernel", kernel):
        layer = int(key.split(".layers.")[1].split(".")[0])
        part = {"k_proj": 0, "v_proj": 1}[key.split(".")[-2]]
        for head in range(3):
            for entry in range(4):
                np.testing.assert_array_equal(tensor[head * 4 + entry], kernel[layer, part, head, :, entry])


def test_kinds_are_told_by_what_one_alone_has():
    for kind in ("pi05", "pi0"):
        assert pytorch_rules.kind_of(pytorch_rules.keys(of_kind(TINY, kind))) == kind
    assert pytorch_rules.kind_of(["action_in_proj.weight"]) is None


def test_wrong_leaves_and_tensors_are_refused():
    name = "vlm/layers/attn/kv/kernel"
    with pytest.raises(ValueError, match=r"no rule for 'vlm/layers/attn/k/kernel'"):
        list(pytorch_rules.to_pytorch("vlm/layers/attn/k/kernel", np.zeros((2, 3))))
    with pytest.raises(ValueError, match=r"cannot be of shape \(2, 3, 1, 5, 4\): its axes are kdh -> \(kh\)d"):
        list(pytorch_rules.to_pytorch(name, np.zeros((2, 3, 1, 5, 4), np.float32)))
    good = dict(pytorch_rules.to_pytorch(name, np.zeros((2, 2, 1, 5, 4), np.float32)))
    last = list(good)[-1]
    with pytest.raises(ValueError, match=r"v_proj.weight is \(5, 4\), of this model it is \(4, 5\)"):
        pytorch_rules.from_pytorch(name, (good | {last: good[last].T}).__getitem__, (2, 2, 1, 5, 4))
    with pytest.raises(
        ValueError, match=r"v_proj.weight is float64, .*k_proj.weight is float32; one leaf has one type"
    ):
        pytorch_rules.from_pytorch(name, (good | {last: good[last].astype(float)}).__getitem__, (2, 2, 1, 5, 4))
