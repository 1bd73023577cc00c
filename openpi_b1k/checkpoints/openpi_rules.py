"""Our parameter names and openpi's, one table for both directions. The arrays stay the same: none is reshaped.

The point cloud's encoder, which openpi does not have, keeps our names.

Source of openpi's names: its published checkpoints, `params/` item, at 15a9616.
"""

from typing import Any

from openpi_b1k.checkpoints.rules import Rule, flatten, rename, unflatten
from openpi_b1k.typing import Params

_IMG, _LLM = "PaliGemma/img", "PaliGemma/llm"
_BLOCK = f"{_IMG}/Transformer/encoderblock"
_HEADS = f"{_BLOCK}/MultiHeadDotProductAttention_0"


def _expert(ours: str, suffix: str) -> list[Rule]:
    """Returns the rules of what both experts have; openpi tells the second by a suffix."""
    layers, theirs = f"{ours}/layers", f"{_LLM}/layers"
    return [
        Rule(f"{layers}/attn/q/kernel", f"{theirs}/attn/q_einsum{suffix}/w"),
        Rule(f"{layers}/attn/kv/kernel", f"{theirs}/attn/kv_einsum{suffix}/w"),
        Rule(f"{layers}/attn/out/kernel", f"{theirs}/attn/attn_vec_einsum{suffix}/w"),
        Rule(f"{layers}/mlp/gate_up/kernel", f"{theirs}/mlp{suffix}/gating_einsum"),
        Rule(f"{layers}/mlp/down/kernel", f"{theirs}/mlp{suffix}/linear"),
    ]


TO_OPENPI = (
    Rule("vision/embedding/{kind}", f"{_IMG}/embedding/{{kind}}"),
    Rule("vision/pos_embedding", f"{_IMG}/pos_embedding"),
    Rule("vision/layers/pre_attention_norm/{kind}", f"{_BLOCK}/LayerNorm_0/{{kind}}"),
    Rule("vision/layers/attn/q/{kind}", f"{_HEADS}/query/{{kind}}"),
    Rule("vision/layers/attn/k/{kind}", f"{_HEADS}/key/{{kind}}"),
    Rule("vision/layers/attn/v/{kind}", f"{_HEADS}/value/{{kind}}"),
    Rule("vision/layers/attn/out/{kind}", f"{_HEADS}/out/{{kind}}"),
    Rule("vision/layers/pre_mlp_norm/{kind}", f"{_BLOCK}/LayerNorm_1/{{kind}}"),
    Rule("vision/layers/mlp/up/{kind}", f"{_BLOCK}/MlpBlock_0/Dense_0/{{kind}}"),
    Rule("vision/layers/mlp/down/{kind}", f"{_BLOCK}/MlpBlock_0/Dense_1/{{kind}}"),
    Rule("vision/final_norm/{kind}", f"{_IMG}/Transformer/encoder_norm/{{kind}}"),
    Rule("vision/head/{kind}", f"{_IMG}/head/{{kind}}"),
    Rule("vlm/embedder/embedding", f"{_LLM}/embedder/input_embedding"),
    *_expert("vlm", ""),
    Rule("vlm/layers/pre_attention_norm/scale", f"{_LLM}/layers/pre_attention_norm/scale"),
    Rule("vlm/layers/pre_mlp_norm/scale", f"{_LLM}/layers/pre_ffw_norm/scale"),
    Rule("vlm/final_norm/scale", f"{_LLM}/final_norm/scale"),
    *_expert("action_expert", "_1"),
    Rule(
        "action_expert/layers/pre_attention_norm/modulation/{kind}",
        f"{_LLM}/layers/pre_attention_norm_1/Dense_0/{{kind}}",
    ),
    Rule("action_expert/layers/pre_mlp_norm/modulation/{kind}", f"{_LLM}/layers/pre_ffw_norm_1/Dense_0/{{kind}}"),
    Rule("action_expert/final_norm/modulation/{kind}", f"{_LLM}/final_norm_1/Dense_0/{{kind}}"),
    Rule("suffix/action_in_proj/{kind}", "action_in_proj/{kind}"),
    Rule("suffix/action_out_proj/{kind}", "action_out_proj/{kind}"),
    Rule("suffix/time_mlp_in/{kind}", "time_mlp_in/{kind}"),
    Rule("suffix/time_mlp_out/{kind}", "time_mlp_out/{kind}"),
    Rule("point_cloud/{layer}/{kind}", "point_cloud/{layer}/{kind}"),
)
OURS_ALONE = ("point_cloud",)
"""Groups of parameters that openpi's models do not have."""
FROM_OPENPI = tuple(rule.inverse() for rule in TO_OPENPI)


def to_openpi(params: Params) -> dict[str, Any]:
    """Returns the same leaves as a nested dict under openpi's names, without its `params` root and `value` leaves."""
    return unflatten(rename(flatten(params), TO_OPENPI))


def from_openpi(tree: dict[str, Any]) -> Params:
    """Returns the same leaves under our names; `tree` is as `to_openpi` returns it.

    Raises:
        ValueError: a key is none of pi0.5's; the message names the nearest.
    """
    return unflatten(rename(flatten(tree), FROM_OPENPI))


def with_value_leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns `tree` as it lies on disk: under a root `params`, each leaf as `{"value": leaf}`."""
    return {"params": unflatten({f"{path}/value": leaf for path, leaf in flatten(tree).items()})}


def without_value_leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns what `with_value_leaves` was given.

    Raises:
        ValueError: the root is not `params`, or a leaf is not under `value`.
    """
    if set(tree) != {"params"}:
        raise ValueError(f"expected the one root 'params'; got {sorted(tree)}")
    leaves = flatten(tree["params"])
    wrong = [path for path in leaves if not path.endswith("/value")]
    if wrong:
        raise ValueError(f"expected every leaf under 'value', as openpi writes NNX parameters; got {wrong[:4]}")
    return unflatten({path.removesuffix("/value"): leaf for path, leaf in leaves.items()})
