"""Building blocks: linear maps, norms, rotary positions and attention, as functions of weights and activations.

Norms, softmax and rotary positions compute in float32, all else in the type of the activations; casts are those of
`openpi_b1k/models`. Axis letters in comments and docstrings as there: b batch, t and s tokens, d width, n query heads,
k key/value heads, g query heads per key/value head, h head dim.
"""

import numpy as np
import torch
from torch.nn import functional

from openpi_b1k.config.model import GemmaConfig
from openpi_b1k.pytorch.weights import Weights

NORM_EPS = 1e-6
ROPE_MAX_WAVELENGTH = 10_000.0
MASKED_SCORE = -2.3819763e38  # as Gemma's: finite, so that a row with nothing to see stays finite

KeysValues = tuple[torch.Tensor, torch.Tensor]
Rotation = tuple[torch.Tensor, torch.Tensor]


def linear(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Returns the affine map of the last axis of `x`, in its type."""
    return functional.linear(x, weights("weight").to(x.dtype), weights("bias").to(x.dtype))


def projected(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the linear map of the last axis of `x`, in its type."""
    return functional.linear(x, weight.to(x.dtype))


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Returns the tanh form of gelu."""
    return functional.gelu(x, approximate="tanh")


def layer_norm(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Returns `x` normalised over its last axis, in its type."""
    scale, shift = weights("weight").float(), weights("bias").float()
    return functional.layer_norm(x.float(), scale.shape, scale, shift, NORM_EPS).to(x.dtype)


def rms_normalize(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` in float32 with a root mean square of one over its last axis."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def rms_norm(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Returns `x` normalised over its last axis, in its type; the stored scale is an offset from one."""
    return (rms_normalize(x) * (1 + weights("weight").float())).to(x.dtype)


def rotation(positions: torch.Tensor, head_dim: int) -> Rotation:
    """Returns the sines and cosines, float32 [b, t, 1, h / 2], of the angles that positions [b, t] turn a head by."""
    # As in models/attention.py, to the last bit: at position 968 that is 6e-5 rad.
    frequency = (ROPE_MAX_WAVELENGTH ** (-np.arange(head_dim // 2) / (head_dim // 2))).astype(np.float32)
    angle = positions[:, :, None, None].float() * torch.from_numpy(frequency).to(positions.device)
    return angle.sin(), angle.cos()


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Returns `x` [b, t, heads, h] with each pair of entries (i, i + h / 2) turned."""
    sin, cos = by
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def positions(mask: torch.Tensor, start: torch.Tensor | int = 0) -> torch.Tensor:
    """Returns each token's position [b, t]: how many that are there precede it, counted from `start` [b, 1]."""
    return start + mask.int().cumsum(-1) - 1


def block_mask(starts_block: tuple[bool, ...], device: torch.device) -> torch.Tensor:
    """Returns whether token i (axis 0) sees token j (axis 1): those of its own block and of earlier ones."""
    block = torch.tensor(starts_block, device=device).int().cumsum(-1)
    return block[:, None] >= block[None, :]


def score_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to the scores [b, t, s]: nothing where `mask` lets token t see token s."""
    return torch.where(mask, 0.0, MASKED_SCORE).to(dtype)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns what each token gathers, [b, t, n * h]; float32 scores and softmax.

    Args:
        queries: [b, t, n, h], scaled.
        keys: [b, s, k, h]; consecutive groups of n / k query heads share a key head.
        values: [b, s, k, h].
        bias: [b, t, s], added to the scores; None: all tokens see all.
    """
    b, t, n, h = queries.shape
    k = keys.shape[2]
    # The heads of a group read the same keys, so they are rows of one product.
    grouped = queries.reshape(b, t, k, n // k, h).permute(0, 2, 1, 3, 4).reshape(b, k, -1, h)
    if bias is not None:
        bias = bias.repeat_interleave(n // k, dim=1)[:, None]
    gathered = functional.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias, scale=1.0
    )
    return gathered.reshape(b, k, t, n // k, h).permute(0, 2, 1, 3, 4).reshape(b, t, n * h)


def scaled(queries: torch.Tensor) -> torch.Tensor:
    """Returns queries [b, t, n, h] divided by the square root of h, a factor that is rounded to their type first."""
    return queries * torch.tensor(queries.shape[-1] ** -0.5, dtype=queries.dtype)


def gemma_queries(weights: Weights, config: GemmaConfig, x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Returns the rotated and scaled queries [b, t, n, h] of a Gemma layer."""
    queries = projected(weights("q_proj.weight"), x)
    return scaled(rotate(queries.unflatten(-1, (config.num_heads, config.head_dim)), by))


def gemma_keys_values(weights: Weights, config: GemmaConfig, x: torch.Tensor, by: Rotation) -> KeysValues:
    """Returns the rotated keys and the values of a Gemma layer, each [b, t, k, h]."""
    heads = (config.num_kv_heads, config.head_dim)
    keys, values = (projected(weights(f"{name}_proj.weight"), x).unflatten(-1, heads) for name in ("k", "v"))
    return rotate(keys, by), values


def gemma_mlp(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Returns down(gelu(gate(x)) * up(x))."""
    gate = gelu(projected(weights("gate_proj.weight"), x))
    return projected(weights("down_proj.weight"), gate * projected(weights("up_proj.weight"), x))
