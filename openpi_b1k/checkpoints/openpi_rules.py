"""Our parameter names and openpi's, one table for both directions and both kinds of model; no array is reshaped.

The point cloud's encoder, which openpi does not have, keeps our names.

Source of openpi's names: its published checkpoints, `params/` item, at 15a9616.
"""

from collections.abc import Iterable
from typing import Any, Literal

from openpi_b1k.checkpoints.rules import Rule, flatten, rename, unflatten
from openpi_b1k.typing import Params

Kind = Literal["pi05", "pi0"]

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


_SHARED = (
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
    Rule("suffix/action_in_proj/{kind}", "action_in_proj/{kind}"),
    Rule("suffix/action_out_proj/{kind}", "action_out_proj/{kind}"),
    Rule("point_cloud/{layer}/{kind}", "point_cloud/{layer}/{kind}"),
)
_PI05 = (
    Rule(
        "action_expert/layers/pre_attention_norm/modulation/{kind}",
        f"{_LLM}/layers/pre_attention_norm_1/Dense_0/{{kind}}",
    ),
    Rule("action_expert/layers/pre_mlp_norm/modulation/{kind}", f"{_LLM}/layers/pre_ffw_norm_1/Dense_0/{{kind}}"),
    Rule("action_expert/final_norm/modulation/{kind}", f"{_LLM}/final_norm_1/Dense_0/{{kind}}"),
    Rule("suffix/time_mlp_in/{kind}", "time_mlp_in/{kind}"),
    Rule("suffix/time_mlp_out/{kind}", "time_mlp_out/{kind}"),
)
_PI0 = (
    Rule("action_expert/layers/pre_attention_norm/scale", f"{_LLM}/layers/pre_attention_norm_1/scale"),
    Rule("action_expert/layers/pre_mlp_norm/scale", f"{_LLM}/layers/pre_ffw_norm_1/scale"),
    Rule("action_expert/final_norm/scale", f"{_LLM}/final_norm_1/scale"),
    Rule("suffix/state_proj/{kind}", "state_proj/{kind}"),
    Rule("suffix/action_time_mlp_in/{kind}", "action_time_mlp_in/{kind}"),
    Rule("suffix/action_time_mlp_out/{kind}", "action_time_mlp_out/{kind}"),
)
OF_ONE_KIND: dict[Kind, tuple[Rule, ...]] = {"pi05": _PI05, "pi0": _PI0}
"""Rules of the parameters that one kind of model alone has."""
RECIPES: dict[Kind, str] = {"pi05": "pi05_b1k", "pi0": "pi0_b1k"}
"""A recipe of each kind, for error messages."""
TO_OPENPI = (*_SHARED, *_PI05, *_PI0)
OURS_ALONE = ("point_cloud",)
"""Groups of parameters that openpi's models do not have."""
FROM_OPENPI = tuple(rule.inverse() for rule in TO_OPENPI)


def kind_of(names: Iterable[str]) -> Kind | None:
    """Returns the kind of model that parameters, under our names or openpi's, are of; None if it shows of none or both.

    A name that one kind alone has shows it, so an incomplete model tells its kind, too.
    """
    names = list(names)
    found: list[Kind] = [kind for kind, rules in OF_ONE_KIND.items() if any(_matches(rules, name) for name in names)]
    return found[0] if len(found) == 1 else None


def _matches(rules: Iterable[Rule], name: str) -> bool:
    return any(rule.apply(name) is not None or rule.inverse().apply(name) is not None for rule in rules)


def require_kind(names: Iterable[str], wanted: Kind, where: str) -> None:
    """Refuses parameters that are of the other kind of model.

    Args:
        names: ours or openpi's.
        wanted: the kind of the config.
        where: what holds the parameters, such as a path, for the message.

    Raises:
        ValueError: they are of the other kind; tells which recipe or flag to use.
    """
    found = kind_of(names)
    if found not in (None, wanted):
        raise ValueError(
            f"{where} holds a model of kind {found}, but the config asks for {wanted}: use recipe {RECIPES[found]}, or "
            f"give --model.kind {found} (or choose other --weights)"
        )


def to_openpi(params: Params) -> dict[str, Any]:
    """Returns the same leaves as a nested dict under openpi's names, without its `params` root and `value` leaves."""
    return unflatten(rename(flatten(params), TO_OPENPI))


def from_openpi(tree: dict[str, Any]) -> Params:
    """Returns the same leaves under our names; `tree` is as `to_openpi` returns it.

    Raises:
        ValueError: a key is neither of pi0.5 nor of pi0; the message names the nearest.
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
