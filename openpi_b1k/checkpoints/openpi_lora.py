"""openpi's low-rank adapters, and the dense kernels that they mean.

openpi computes them otherwise than the paper it cites (arXiv 2106.09685), and otherwise than ours (`models/lora.py`):

- Each head has factors of its own. Of the attention's output, each head's A feeds one sum over all tokens' heads, and
  B is summed over heads, too: the kernel of head n becomes W[n] + scale * A[n] @ sum(B).
- MLPs leave out alpha / rank: W + A @ B.
- alpha and rank are in no checkpoint. In the configs openpi publishes (`gemma_2b_lora`: 16 and 16, `gemma_300m_lora`:
  32 and 32) alpha / rank is 1.

Source: openpi `models/lora.py` and `models/gemma.py` at 15a9616.
"""

from collections.abc import Mapping

import jax
import numpy as np

from openpi_b1k.checkpoints.rules import Rule

FACTORS = ("lora_a", "lora_b")
PUBLISHED_SCALE = 1.0
"""alpha / rank of the configs that openpi publishes."""

_LAYERS = "PaliGemma/llm/layers"
_OUTPUT = "attn/out/kernel"
_MLP = "/mlp/"


def _expert(ours: str, suffix: str) -> list[Rule]:
    rules = []
    for factor in FACTORS:
        layers = f"{ours}/layers"
        rules += [
            Rule(f"{_LAYERS}/attn/q_einsum{suffix}/{factor}", f"{layers}/attn/q/{factor}"),
            Rule(f"{_LAYERS}/attn/kv_einsum{suffix}/{factor}", f"{layers}/attn/kv/{factor}"),
            Rule(f"{_LAYERS}/attn/attn_vec_einsum{suffix}/{factor}", f"{layers}/attn/out/{factor}"),
            Rule(f"{_LAYERS}/mlp{suffix}/gating_einsum_{factor}", f"{layers}/mlp/gate_up/{factor}"),
            Rule(f"{_LAYERS}/mlp{suffix}/linear_{factor}", f"{layers}/mlp/down/{factor}"),
        ]
    return rules


FROM_OPENPI = (*_expert("vlm", ""), *_expert("action_expert", "_1"))
"""openpi's names of the factors to ours, which lie beside their kernel."""


def factors_of(kernel: str) -> tuple[str, str]:
    """Returns the names of the two factors of a kernel, under our names."""
    parent = kernel.rpartition("/")[0]
    return f"{parent}/{FACTORS[0]}", f"{parent}/{FACTORS[1]}"


def is_factor(name: str) -> bool:
    """Whether a name of ours is an adapter's."""
    return name.endswith(FACTORS)


def adapted_kernels(stored: Mapping[str, jax.ShapeDtypeStruct], where: str) -> tuple[str, ...]:
    """Returns the names of the kernels that have adapters, each checked against its two factors.

    Args:
        stored: abstract arrays under our names.
        where: what holds them, for messages.

    Raises:
        ValueError: a factor lacks its kernel or the other factor, or is of another shape than they ask for.
    """
    kernels = sorted({f"{name.rpartition('/')[0]}/kernel" for name in stored if is_factor(name)})
    for kernel in kernels:
        missing = [name for name in (kernel, *factors_of(kernel)) if name not in stored]
        if missing:
            raise ValueError(
                f"{where} has an adapter of {kernel} without {missing}; it needs kernel, lora_a and lora_b"
            )
        a, b = factors_of(kernel)
        _require_fitting(kernel, stored[kernel].shape, stored[a].shape, stored[b].shape, where)
    return tuple(kernels)


def _require_fitting(name: str, kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], where: str) -> None:
    wanted_a, wanted_b = (*kernel[:-1], a[-1]), (*kernel[:-2], a[-1], kernel[-1])
    if (a, b) != (wanted_a, wanted_b):
        raise ValueError(
            f"{where} has an adapter of {name} {kernel} with factors {a} and {b}; of rank {a[-1]} they would be "
            f"{wanted_a} and {wanted_b}"
        )


def merge(name: str, kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """Returns the dense kernel, float32, that a kernel with an adapter acts as; beside it, one layer is held.

    Args:
        name: of the kernel, under our names.
        kernel: [layers, ...], stacked.
        a: the first factor, likewise.
        b: the second.
        scale: alpha / rank, used where openpi uses it.
    """
    merged = kernel.astype(np.float32)
    factor = np.float32(1.0 if _MLP in name else scale)
    for layer in range(len(merged)):
        first, second = a[layer].astype(np.float32), b[layer].astype(np.float32)
        if name.endswith(_OUTPUT):
            second = second.sum(axis=0)  # over heads
        merged[layer] += factor * (first @ second)
    return merged
