"""An independent oracle in NumPy float64: prefix and suffix as one sequence under one attention, layer by layer.

Works on parameters under openpi's names and follows openpi's paper, not our modules.
"""

import numpy as np


def rms(x, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def modulate(x, condition, norm):
    """Returns the norm of `x` and its gate; pi0's norm has a scale alone."""
    if "scale" in norm:
        return rms(x) * (1 + norm["scale"]), 1.0
    dense = norm["Dense_0"]
    scale, shift, gate = np.split((condition @ dense["kernel"] + dense["bias"])[:, None], 3, axis=-1)
    return rms(x) * (1 + scale) + shift, gate


def rope(x, positions):
    half = x.shape[-1] // 2
    angle = positions[..., None, None] / 10_000.0 ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    rotated = [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    return np.concatenate(rotated, axis=-1)


def geglu(x, gating, linear):
    gate, up = x @ gating[0], x @ gating[1]
    return (0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up) @ linear


def attention(q, k, v, sees):
    """Returns attended values for q [b, t, n, h], k and v [b, t, kv heads, h]."""
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(sees[:, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def of_layer(tree, i):
    """Returns one layer of a nested dict of stacked arrays."""
    return {name: of_layer(leaf, i) if isinstance(leaf, dict) else leaf[i] for name, leaf in tree.items()}


def expert_output(params, prefix, prefix_mask, suffix, condition, num_actions):
    """Returns the suffix after the expert's final norm; prefix [b, t, d], suffix [b, a, e], condition [b, c].

    What precedes the actions in the suffix sees none of them.
    """
    llm = params["PaliGemma"]["llm"]
    t, a = prefix.shape[1], suffix.shape[1]
    mask = np.concatenate([prefix_mask, np.ones((len(suffix), a), bool)], axis=1)
    positions = np.cumsum(mask, axis=1) - 1
    block = np.array([0] * t + [1] * (a - num_actions) + [2] * num_actions)
    sees = (block[:, None] >= block[None]) & mask[:, None, :]
    layers = llm["layers"]
    for i in range(len(layers["mlp"]["linear"])):
        normed_prefix = rms(prefix) * (1 + layers["pre_attention_norm"]["scale"][i])
        normed_suffix, gate = modulate(suffix, condition, of_layer(layers["pre_attention_norm_1"], i))
        parts = []
        for x, tail in ((normed_prefix, ""), (normed_suffix, "_1")):
            attn = layers["attn"]
            q = np.einsum("btd,ndh->btnh", x, attn[f"q_einsum{tail}"]["w"][i])
            k, v = np.einsum("btd,ckdh->cbtkh", x, attn[f"kv_einsum{tail}"]["w"][i])
            parts.append((q, k, v))
        q, k, v = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
        attended = attention(rope(q, positions), rope(k, positions), v, sees)
        out = [layers["attn"][f"attn_vec_einsum{tail}"]["w"][i] for tail in ("", "_1")]
        prefix = prefix + np.einsum("btnh,nhd->btd", attended[:, :t], out[0])
        suffix = suffix + gate * np.einsum("btnh,nhd->btd", attended[:, t:], out[1])
        normed_prefix = rms(prefix) * (1 + layers["pre_ffw_norm"]["scale"][i])
        normed_suffix, gate = modulate(suffix, condition, of_layer(layers["pre_ffw_norm_1"], i))
        prefix = prefix + geglu(normed_prefix, layers["mlp"]["gating_einsum"][i], layers["mlp"]["linear"][i])
        suffix = suffix + gate * geglu(normed_suffix, layers["mlp_1"]["gating_einsum"][i], layers["mlp_1"]["linear"][i])
    return modulate(suffix, condition, llm["final_norm_1"])[0]
