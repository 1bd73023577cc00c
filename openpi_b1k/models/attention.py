"""Attention of the prefix to itself, and of the suffix to the prefix's keys and values and its own.

Queries are grouped by the key/value head they share: [..., t, k, g, h] with g query heads per key/value head.
Scores and softmax are float32; the softmax is divided by its sum after the values are gathered, which is the smaller
array by far.
"""

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.typing import Array, Bool, Float, Int, typecheck

ROPE_MAX_WAVELENGTH = 10_000.0
MASKED_SCORE = -2.3819763e38  # as Gemma's: finite, so that a row with nothing to see stays finite


@typecheck
def rotate(x: Float[Array, "b *f t k h"], positions: Int[Array, "b t"]) -> Float[Array, "b *f t k h"]:
    """Returns `x` with rotary position embedding, computed in float32. Source: openpi `models/gemma.py`."""
    half = x.shape[-1] // 2
    # Rounded once, and multiplied with: libraries differ in float32 powers, compilers in how they divide by a constant,
    # and at position 968 a last bit turns a pair by 6e-5 rad.
    frequency = (ROPE_MAX_WAVELENGTH ** (-np.arange(half) / half)).astype(np.float32)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    angle = angle.reshape(angle.shape[0], *[1] * (x.ndim - 4), *angle.shape[1:])
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@typecheck
def attend(
    queries: Float[Array, "b t k g h"],
    keys: Float[Array, "b t k h"],
    values: Float[Array, "b t k h"],
    mask: Bool[Array, "b t t"] | None = None,
) -> Float[Array, "b t k g h"]:
    """Returns what each token gathers from the tokens that `mask` lets it see (axis 1 sees axis 2); None: from all."""
    b, t, k, g, h = queries.shape
    queries, keys, values = heads_first(queries), heads_first(keys), heads_first(values)
    scores = matched(queries.reshape(b * k, t * g, h), keys.reshape(b * k, t, h)).reshape(b, k, t, g, t)
    if mask is not None:
        scores = jnp.where(mask[:, None, :, None, :], scores, MASKED_SCORE)
    weights = jnp.exp(scores - highest(scores))
    gathered = gather(weights.reshape(b * k, t * g, t), values.reshape(b * k, t, h)).reshape(b, k, t, g, h)
    gathered = gathered / jnp.sum(weights, axis=-1)[..., None]
    return jnp.moveaxis(gathered.astype(values.dtype), 1, 2)


@typecheck
def attend_with_prefix(
    queries: Float[Array, "b f a k g h"],
    own: tuple[Float[Array, "b f a k h"], Float[Array, "b f a k h"]],
    prefix: tuple[Float[Array, "b t k h"], Float[Array, "b t k h"]],
    mask: Bool[Array, "b a t_and_a"],
) -> Float[Array, "b f a k g h"]:
    """Returns what each of `a` suffix tokens gathers from its prefix and its own flow sample.

    The prefix's keys and values have no axis `f`: all flow samples of an observation read the same arrays.
    Both come as keys and values; `mask` says which of them a token sees, first the prefix's, then its sample's own.
    """
    (b, f, a, k, g, h), t = queries.shape, prefix[0].shape[1]
    per_prefix, per_sample = (b * k, f * a * g), (b * k * f, a * g)  # batch and rows of the two products
    queries = jnp.moveaxis(queries, 3, 1)
    keys, values = (jnp.moveaxis(x, 3, 1).reshape(b * k * f, a, h) for x in own)
    prefix_keys, prefix_values = (heads_first(x).reshape(b * k, t, h) for x in prefix)
    to_prefix = matched(queries.reshape(*per_prefix, h), prefix_keys).reshape(b, k, f, a, g, t)
    to_suffix = matched(queries.reshape(*per_sample, h), keys).reshape(b, k, f, a, g, a)
    to_prefix = jnp.where(mask[:, None, None, :, None, :t], to_prefix, MASKED_SCORE)
    to_suffix = jnp.where(mask[:, None, None, :, None, t:], to_suffix, MASKED_SCORE)
    top = jnp.maximum(highest(to_prefix), highest(to_suffix))
    to_prefix, to_suffix = jnp.exp(to_prefix - top), jnp.exp(to_suffix - top)
    from_prefix = gather(to_prefix.reshape(*per_prefix, t), prefix_values).reshape(b, k, f, a, g, h)
    from_suffix = gather(to_suffix.reshape(*per_sample, a), values).reshape(b, k, f, a, g, h)
    total = jnp.sum(to_prefix, axis=-1) + jnp.sum(to_suffix, axis=-1)
    return jnp.moveaxis(((from_prefix + from_suffix) / total[..., None]).astype(values.dtype), 1, 3)


def heads_first(x: Float[Array, "b t k *rest"]) -> Float[Array, "b k t *rest"]:
    """Returns `x` with the key/value heads next to the batch, so that both fold into one axis of products.

    One batch axis is several times faster on CPUs than two, and the same on GPUs.
    """
    return jnp.swapaxes(x, 1, 2)


def matched(queries: Float[Array, "b q h"], keys: Float[Array, "b s h"]) -> Float[Array, "b q s"]:
    """Returns the float32 score of each query with each key."""
    return jnp.einsum("bqh,bsh->bqs", queries, keys, preferred_element_type=jnp.float32)


def highest(scores: Float[Array, "*b s"]) -> Float[Array, "*b 1"]:
    """Returns the highest score of each query. It cancels in the softmax, so no gradient passes through it."""
    return jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))


def gather(weights: Float[Array, "b q s"], values: Float[Array, "b s h"]) -> Float[Array, "b q h"]:
    """Returns the float32 weighted sum of the values for each query; weights are cast to the type of the values."""
    weights = weights.astype(values.dtype)
    return jnp.einsum("bqs,bsh->bqh", weights, values, preferred_element_type=jnp.float32)
