"""Our parameters and the tensors of openpi's PyTorch models, one table for both directions, pi0 and pi0.5 alike.

A rule names a leaf, the tensors that it is in the other layout, and how the axes go. Where ours stack all layers,
theirs are one tensor a layer; where ours fuse two kernels, theirs are two. Values are moved, never computed.

Source of the names: openpi's converter `examples/convert_jax_model_to_pytorch.py` and its models at 15a9616. RLinf uses
the same. The encoder of point clouds is ours alone.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from openpi_b1k.checkpoints.tensor_rule import LAYER, TensorRule
from openpi_b1k.config.model import GemmaConfig, ModelConfig

FILLED_WITH_ZEROS = "paligemma_with_expert.gemma_expert.lm_head.weight"
"""[vocabulary, expert width]: openpi's module has it and never uses it, and its JAX model has nothing for it."""

_PALIGEMMA = "paligemma_with_expert.paligemma"
_TOWER = f"{_PALIGEMMA}.model.vision_tower.vision_model"
_BLOCK = f"{_TOWER}.encoder.layers.{LAYER}"


def _affine(ours: str, theirs: str, kernel: str, bias: str) -> list[TensorRule]:
    """Returns the rules of a kernel and its bias, given how their axes go."""
    return [
        TensorRule(f"{ours}/kernel", (f"{theirs}.weight",), kernel),
        _vector(f"{ours}/bias", f"{theirs}.bias", bias),
    ]


def _linear(ours: str, theirs: str, axes: str) -> list[TensorRule]:
    """Returns the rules of a kernel from the first axis to the second, and of its bias."""
    start, end = axes
    return _affine(ours, theirs, f"{axes} -> {end}{start}", f"{end} -> {end}")


def _vector(ours: str, theirs: str, axes: str = "d -> d") -> TensorRule:
    return TensorRule(ours, (theirs,), axes)


def _layer_norm(ours: str, theirs: str) -> list[TensorRule]:
    return [_vector(f"{ours}/scale", f"{theirs}.weight"), _vector(f"{ours}/bias", f"{theirs}.bias")]


def _vision() -> list[TensorRule]:
    rules = [
        *_affine("vision/embedding", f"{_TOWER}.embeddings.patch_embedding", "yxcd -> dcyx", "d -> d"),
        TensorRule("vision/pos_embedding", (f"{_TOWER}.embeddings.position_embedding.weight",), "otd -> (ot)d"),
        *_layer_norm("vision/layers/pre_attention_norm", f"{_BLOCK}.layer_norm1"),
        *_layer_norm("vision/layers/pre_mlp_norm", f"{_BLOCK}.layer_norm2"),
        *_layer_norm("vision/final_norm", f"{_TOWER}.post_layernorm"),
        *_affine("vision/layers/attn/out", f"{_BLOCK}.self_attn.out_proj", "nhd -> d(nh)", "d -> d"),
        *_linear("vision/layers/mlp/up", f"{_BLOCK}.mlp.fc1", "df"),
        *_linear("vision/layers/mlp/down", f"{_BLOCK}.mlp.fc2", "fd"),
        *_linear("vision/head", f"{_PALIGEMMA}.model.multi_modal_projector.linear", "de"),
    ]
    for name in "qkv":
        rules += _affine(f"vision/layers/attn/{name}", f"{_BLOCK}.self_attn.{name}_proj", "dnh -> (nh)d", "nh -> (nh)")
    return rules


def _gemma(ours: str, theirs: str) -> list[TensorRule]:
    """Returns the rules of what both experts have."""
    layer = f"{theirs}.layers.{LAYER}"
    heads = tuple(f"{layer}.self_attn.{name}_proj.weight" for name in "kv")
    return [
        TensorRule(f"{ours}/layers/attn/q/kernel", (f"{layer}.self_attn.q_proj.weight",), "ndh -> (nh)d"),
        TensorRule(f"{ours}/layers/attn/kv/kernel", heads, "kdh -> (kh)d"),
        TensorRule(f"{ours}/layers/attn/out/kernel", (f"{layer}.self_attn.o_proj.weight",), "nhd -> d(nh)"),
        TensorRule(
            f"{ours}/layers/mlp/gate_up/kernel",
            (f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"),
            "df -> fd",
        ),
        TensorRule(f"{ours}/layers/mlp/down/kernel", (f"{layer}.mlp.down_proj.weight",), "fd -> df"),
    ]


_NORMS = {
    "layers/pre_attention_norm": f"layers.{LAYER}.input_layernorm",
    "layers/pre_mlp_norm": f"layers.{LAYER}.post_attention_layernorm",
    "final_norm": "norm",
}
_LANGUAGE, _EXPERT = f"{_PALIGEMMA}.model.language_model", "paligemma_with_expert.gemma_expert.model"
_PROJECTIONS: dict[Literal["pi05", "pi0"], tuple[str, ...]] = {
    "pi05": ("time_mlp_in", "time_mlp_out"),
    "pi0": ("state_proj", "action_time_mlp_in", "action_time_mlp_out"),
}
"""What one kind of model alone has."""
_SUFFIX_AXES = {"action_in_proj": "ad", "action_out_proj": "da", "state_proj": "ad", "action_time_mlp_in": "fe"}
_POINT_CLOUD_AXES = {"mlp_in": "pd", "mlp_hidden": "de", "mlp_out": "ef"}


def _expert_norms(kind: str) -> list[TensorRule]:
    rules = []
    for ours, theirs in _NORMS.items():
        if kind == "pi0":
            rules.append(_vector(f"action_expert/{ours}/scale", f"{_EXPERT}.{theirs}.weight"))
        else:
            rules += _linear(f"action_expert/{ours}/modulation", f"{_EXPERT}.{theirs}.dense", "de")
    return rules


@functools.cache
def rules(kind: Literal["pi05", "pi0"], point_clouds: bool) -> dict[str, TensorRule]:
    """Returns {our name: rule} of all leaves of a kind of model."""
    found = [
        *_vision(),
        TensorRule("vlm/embedder/embedding", (f"{_PALIGEMMA}.lm_head.weight",), "vd -> vd"),
        *_gemma("vlm", _LANGUAGE),
        *(_vector(f"vlm/{ours}/scale", f"{_LANGUAGE}.{theirs}.weight") for ours, theirs in _NORMS.items()),
        *_gemma("action_expert", _EXPERT),
        *_expert_norms(kind),
    ]
    for name in ("action_in_proj", "action_out_proj", *_PROJECTIONS[kind]):
        found += _linear(f"suffix/{name}", name, _SUFFIX_AXES.get(name, "de"))
    for name, axes in _POINT_CLOUD_AXES.items() if point_clouds else ():
        found += _linear(f"point_cloud/{name}", f"point_cloud.{name}", axes)
    return {rule.ours: rule for rule in found}


def rule_of(name: str) -> TensorRule:
    """Returns the rule of one of our leaves.

    Raises:
        ValueError: there is none.
    """
    for kind in _PROJECTIONS:
        if name in rules(kind, point_clouds=True):
            return rules(kind, point_clouds=True)[name]
    raise ValueError(f"no rule for {name!r}: it is no parameter of pi0 or pi0.5")


def to_pytorch(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, tensor) of all tensors that one of our leaves is in; views where the order of values allows it.

    Raises:
        ValueError: there is no such leaf, or not of this shape.
    """
    rule = rule_of(name)
    rule.part_shape(array.shape)
    for key, index in rule.pieces(array.shape):
        yield key, rule.to_tensor(array[index])


def from_pytorch(name: str, read: Callable[[str], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns one of our leaves, put together from the tensors that hold it.

    Args:
        name: of the leaf.
        read: a key to its tensor.
        shape: of the leaf.

    Raises:
        ValueError: there is no such leaf, a tensor is of another shape, or they are of different types.
    """
    rule = rule_of(name)
    part = rule.part_shape(shape)
    pieces = rule.pieces(shape)
    leaf: np.ndarray | None = None
    for key, index in pieces:
        tensor = read(key)
        if tensor.shape != rule.tensor_shape(part):
            raise ValueError(f"{key} is {tensor.shape}, of this model it is {rule.tensor_shape(part)}")
        if leaf is None:
            leaf = np.empty(shape, tensor.dtype)
        if tensor.dtype != leaf.dtype:
            raise ValueError(f"{key} is {tensor.dtype}, {pieces[0][0]} is {leaf.dtype}; one leaf has one type")
        leaf[index] = rule.from_tensor(tensor, part)
    if leaf is None:
        raise ValueError(f"{name} has no layers: its shape is {shape}")
    return leaf


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns {our name: shape} of all leaves of a model."""
    sizes = _sizes(config)
    depths = {"vision": config.vision.depth, "vlm": config.vlm.depth, "action_expert": config.action_expert.depth}
    found = {}
    for name, rule in rules(config.kind, config.point_clouds).items():
        root = name.split("/")[0]
        layers = (depths[root],) if rule.is_stacked else ()
        fused = (len(rule.theirs),) if rule.is_fused else ()
        found[name] = (*layers, *fused, *(sizes[root][letter] for letter in rule.axes.split(" -> ")[0]))
    return found


def keys(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of all tensors of a model, by name."""
    found = {FILLED_WITH_ZEROS: (config.vocab_size, config.action_expert.width)}
    for name, shape in shapes(config).items():
        rule = rule_of(name)
        tensor_shape = rule.tensor_shape(rule.part_shape(shape))
        found |= {key: tensor_shape for key, _ in rule.pieces(shape)}
    return dict(sorted(found.items()))


def kind_of(keys: Iterable[str]) -> Literal["pi05", "pi0"] | None:
    """Returns which kind of model some tensors are of; None if they show of none."""
    roots = {key.split(".")[0] for key in keys}
    return next((kind for kind, names in _PROJECTIONS.items() if roots & set(names)), None)


def _sizes(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Returns the size of each letter of the rules, for the leaves that begin with a name."""
    vision, expert, vlm = config.vision, config.action_expert, config.vlm
    head_dim, tokens = vision.width // vision.num_heads, (config.image_size // vision.patch_size) ** 2
    patch = (vision.patch_size, vision.patch_size, 3)
    tower = (vision.width, vision.num_heads, head_dim, vision.mlp_dim, vlm.width, 1, tokens, *patch)

    def gemma(of: GemmaConfig) -> dict[str, int]:
        sizes = (of.width, of.num_heads, of.num_kv_heads, of.head_dim, of.mlp_dim, config.vocab_size, 3 * of.width)
        return dict(zip("dnkhfve", sizes, strict=True))

    return {
        "vision": dict(zip("dnhfeotyxc", tower, strict=True)),
        "vlm": gemma(vlm),
        "action_expert": gemma(expert),
        "suffix": {"a": config.action_dim, "d": expert.width, "e": expert.width, "f": 2 * expert.width},
        "point_cloud": {"p": 3, "d": vlm.width // 2, "e": vlm.width // 2, "f": vlm.width},
    }
