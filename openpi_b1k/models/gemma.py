"""The two Gemma experts: the VLM reads the prefix, the action expert the suffix and the VLM's keys and values.

Source: openpi `models/gemma.py` at 15a9616. Stacked parameter shapes are openpi's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.config.model import NO_ADAPTER, AdapterConfig, GemmaConfig
from openpi_b1k.models import attention
from openpi_b1k.models.layers import (
    Adaptable,
    AdaptiveRMSNorm,
    ExpertNorm,
    Initializer,
    Remat,
    RMSNorm,
    kernel_as,
    parameter,
    run_layers,
    stack_layers,
)
from openpi_b1k.models.lora import GEMMA as FACTORS
from openpi_b1k.models.lora import Factors
from openpi_b1k.models.tokens import TokenGroup, attention_mask, positions
from openpi_b1k.sharding import take_rows
from openpi_b1k.typing import Array, Bool, Float, Int, typecheck

KeysValues = tuple[Float[Array, "*l b t k h"], Float[Array, "*l b t k h"]]
Modulations = tuple[tuple[Float[Array, "*l #b #f 1 m"], Float[Array, "*l #b #f 1 m"]], Float[Array, "*s #b #f 1 m"]]
"""Of the action expert's norms: both of every layer, and the final one."""


def fan_init(in_axis: int | tuple[int, ...], batch_axis: int | tuple[int, ...] = ()) -> Initializer:
    """Returns lecun normal over the given input axes of a kernel, its last axis being the output."""
    return nnx.initializers.lecun_normal(in_axis=in_axis, out_axis=-1, batch_axis=batch_axis)


class Projection(Adaptable):
    """One kernel without a bias, and its adapter, if any; the owner says how it is contracted."""

    def __init__(
        self,
        axes: dict[str, int],
        *,
        rngs: nnx.Rngs,
        in_axis: int | tuple[int, ...],
        batch_axis: int | tuple[int, ...] = (),
        adapter: AdapterConfig = NO_ADAPTER,
        factors: Factors | None = None,
    ):
        self.kernel = parameter(rngs, fan_init(in_axis, batch_axis), tuple(axes.values()), tuple(axes))
        self.add_adapter(axes, adapter, factors, rngs=rngs)

    def __call__(self, equation: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the einsum of `x` and the kernel, with what the adapter adds, in the type of `x`."""
        return self.with_adapter(jnp.einsum(equation, x, kernel_as(self.kernel, x.dtype)), equation, x)


class Attention(nnx.Module):
    """Projections to queries, keys and values, and back."""

    def __init__(self, config: GemmaConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        width, heads, kv_heads = {"embed": config.width}, {"heads": config.num_heads}, {"kv_heads": config.num_kv_heads}
        head = {"head_dim": config.head_dim}
        self.num_kv_heads = config.num_kv_heads
        new = functools.partial(Projection, rngs=rngs, adapter=adapter)
        self.q = new(heads | width | head, in_axis=-2, batch_axis=0, factors=FACTORS["q"])
        self.kv = new({"fused": 2} | kv_heads | width | head, in_axis=-2, batch_axis=(0, 1), factors=FACTORS["kv"])
        self.out = new(heads | head | width, in_axis=(-3, -2), factors=FACTORS["out"])

    def queries(self, x: Float[Array, "b *f t d"], where: Int[Array, "b t"]) -> Float[Array, "b *f t k g h"]:
        """Returns rotated queries at positions `where`, scaled by 1/sqrt(h), grouped by key/value head."""
        queries = attention.rotate(self.q("...td,ndh->...tnh", x), where)
        *batch, heads, head_dim = queries.shape
        return (queries * head_dim**-0.5).reshape(*batch, self.num_kv_heads, heads // self.num_kv_heads, head_dim)

    def keys_values(
        self, x: Float[Array, "b *f t d"], where: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b *f t k h"], Float[Array, "b *f t k h"]]:
        """Returns rotated keys at positions `where`, and values."""
        fused = self.kv("...td,ckdh->...tckh", x)
        return attention.rotate(fused[..., 0, :, :], where), fused[..., 1, :, :]

    def output(self, gathered: Float[Array, "b *f t k g h"]) -> Float[Array, "b *f t d"]:
        """Returns what the heads gathered, summed into the width of the expert."""
        *batch, kv_heads, groups, head_dim = gathered.shape
        return self.out("...tnh,nhd->...td", gathered.reshape(*batch, kv_heads * groups, head_dim))


class Mlp(nnx.Module):
    """GeGLU."""

    def __init__(self, config: GemmaConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        width, hidden = {"embed": config.width}, {"mlp": config.mlp_dim}
        new = functools.partial(Projection, rngs=rngs, adapter=adapter)
        self.gate_up = new({"fused": 2} | width | hidden, in_axis=-2, batch_axis=0, factors=FACTORS["gate_up"])
        self.down = new(hidden | width, in_axis=-2, factors=FACTORS["down"])

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns down(gelu(gate(x)) * up(x)) with the tanh form of gelu."""
        kernels = kernel_as(self.gate_up.kernel, x.dtype)
        gate, up = (
            self.gate_up.with_adapter(x @ kernel, "...d,df->...f", x, part=part) for part, kernel in enumerate(kernels)
        )
        return self.down("...f,fd->...d", jax.nn.gelu(gate, approximate=True) * up)


class VlmLayer(nnx.Module):
    """A Gemma layer with plain RMS norms."""

    def __init__(self, config: GemmaConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        self.pre_attention_norm = RMSNorm(config.width, rngs=rngs)
        self.attn = Attention(config, adapter, rngs=rngs)
        self.pre_mlp_norm = RMSNorm(config.width, rngs=rngs)
        self.mlp = Mlp(config, adapter, rngs=rngs)


class Embedder(nnx.Module):
    """The table of token embeddings."""

    def __init__(self, vocab_size: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        self.embedding = parameter(rngs, init, (vocab_size, width), ("vocab", "embed"))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns float32 embeddings scaled by the square root of their width, as Gemma's."""
        rows = take_rows(self.embedding[...], tokens).astype(jnp.float32)
        return rows * jnp.sqrt(jnp.float32(rows.shape[-1]))


class Vlm(nnx.Module):
    """Gemma over the prefix. Nothing but its layers' keys and values is used, so it returns only those."""

    def __init__(self, config: GemmaConfig, vocab_size: int, adapter: AdapterConfig = NO_ADAPTER, *, rngs: nnx.Rngs):
        self.embedder = Embedder(vocab_size, config.width, rngs=rngs)
        self.layers = stack_layers(lambda keys: VlmLayer(config, adapter, rngs=keys), config.depth, rngs)
        self.final_norm = RMSNorm(config.width, rngs=rngs)  # part of the checkpoint; nothing reads its output

    def keys_values(self, prefix: TokenGroup, *, remat: Remat) -> KeysValues:
        """Returns the keys and values of every layer. What follows them in the last layer is not computed."""
        return self.run(prefix, remat=remat, skip_last=True)[1]

    @typecheck
    def run(
        self, prefix: TokenGroup, *, remat: Remat, skip_last: bool = False
    ) -> tuple[Float[Array, "b t d"], KeysValues]:
        """Returns the prefix tokens after every layer, without the final norm, and every layer's keys and values.

        With `skip_last` the tokens are those before the last layer.
        """
        mask = attention_mask(prefix.mask, prefix.starts_block)
        where = positions(prefix.mask)

        def body(layer: VlmLayer, x: Array, _: None) -> tuple[KeysValues, Callable[[], Array]]:
            normed = layer.pre_attention_norm(x)
            keys, values = layer.attn.keys_values(normed, where)

            def next_x() -> Array:
                gathered = attention.attend(layer.attn.queries(normed, where), keys, values, mask)
                attended = x + layer.attn.output(gathered)
                return attended + layer.mlp(layer.pre_mlp_norm(attended))

            return (keys, values), next_x

        return run_layers(self.layers, body, prefix.tokens, remat=remat, skip_last=skip_last)


class ExpertLayer(nnx.Module):
    """A Gemma layer whose norms give gates for what is added; both follow a condition if the norms are adaptive."""

    def __init__(self, config: GemmaConfig, adapter: AdapterConfig, norm: ExpertNorm, *, rngs: nnx.Rngs):
        self.pre_attention_norm = norm(config.width, rngs=rngs)
        self.attn = Attention(config, adapter, rngs=rngs)
        self.pre_mlp_norm = norm(config.width, rngs=rngs)
        self.mlp = Mlp(config, adapter, rngs=rngs)

    def modulations(self, condition: Float[Array, "b f c"]) -> tuple[Float[Array, "b f 1 m"], Float[Array, "b f 1 m"]]:
        """Returns what a condition makes of the norms before attention and MLP."""
        return self.pre_attention_norm.modulation_by(condition), self.pre_mlp_norm.modulation_by(condition)


@typecheck
def add_gated(
    x: Float[Array, "b f t d"], update: Float[Array, "b f t d"], gate: Float[Array, "#b #f 1 #d"]
) -> Float[Array, "b f t d"]:
    """Returns `x + gate * update`, computed in float32, in the type of `x`."""
    return (x.astype(jnp.float32) + gate * update.astype(jnp.float32)).astype(x.dtype)


class ActionExpert(nnx.Module):
    """Gemma over the suffix, several flow samples at a time."""

    def __init__(
        self,
        config: GemmaConfig,
        adapter: AdapterConfig = NO_ADAPTER,
        norm: ExpertNorm = AdaptiveRMSNorm,
        *,
        rngs: nnx.Rngs,
    ):
        self.layers = stack_layers(lambda keys: ExpertLayer(config, adapter, norm, rngs=keys), config.depth, rngs)
        self.final_norm = norm(config.width, rngs=rngs)

    def modulations(self, condition: Float[Array, "b f c"]) -> Modulations:
        """Returns what a condition makes of all norms; fixed norms need c = 0 only."""
        graph, params = nnx.split(self.layers)
        of_layers = jax.lax.map(lambda layer: nnx.merge(graph, layer).modulations(condition), params)
        return of_layers, self.final_norm.modulation_by(condition)

    @typecheck
    def __call__(
        self,
        suffix: TokenGroup,
        condition: Float[Array, "b f c"],
        prefix_keys_values: KeysValues,
        prefix_mask: Bool[Array, "b t"],
        *,
        remat: Remat,
        modulations: Modulations | None = None,
    ) -> Float[Array, "b f a d"]:
        """Returns the suffix tokens [b, f, a, d] after every layer and the final norm.

        What the condition makes of the norms may be given; else each layer works it out, and training does not keep it.
        """
        of_layers, of_final_norm = modulations or (None, None)
        own_mask = attention_mask(suffix.mask, suffix.starts_block)
        num_suffix, num_prefix = suffix.mask.shape[1], prefix_mask.shape[1]
        to_prefix = jnp.broadcast_to(prefix_mask[:, None, :], (prefix_mask.shape[0], num_suffix, num_prefix))
        mask = jnp.concatenate([to_prefix, own_mask], axis=-1)
        where = positions(suffix.mask, jnp.sum(prefix_mask, axis=-1, dtype=jnp.int32))

        def body(layer: ExpertLayer, x: Array, given: tuple[KeysValues, Any]) -> tuple[None, Callable[[], Array]]:
            from_prefix, known = given

            def next_x() -> Array:
                of_attention, of_mlp = known or layer.modulations(condition)
                normed, gate = layer.pre_attention_norm(x, of_attention)
                own = layer.attn.keys_values(normed, where)
                gathered = attention.attend_with_prefix(layer.attn.queries(normed, where), own, from_prefix, mask)
                attended = add_gated(x, layer.attn.output(gathered), gate)
                normed, gate = layer.pre_mlp_norm(attended, of_mlp)
                return add_gated(attended, layer.mlp(normed), gate)

            return None, next_x

        x, _ = run_layers(self.layers, body, suffix.tokens, remat=remat, per_layer=(prefix_keys_values, of_layers))
        if of_final_norm is None:
            of_final_norm = self.final_norm.modulation_by(condition)
        return self.final_norm(x, of_final_norm)[0]
