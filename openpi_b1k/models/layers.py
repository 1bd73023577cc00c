"""Building blocks: named parameters, linear maps, norms, and stacks of equal layers.

Kernels are stored in float32 and cast to the activations' type where they are used; norms compute in float32.
"""

from collections.abc import Callable
from types import EllipsisType
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from openpi_b1k.config.model import NO_ADAPTER, AdapterConfig
from openpi_b1k.models.lora import Factors, LowRank, factor_shapes, uniform_init
from openpi_b1k.sharding import gathered, split_batch
from openpi_b1k.typing import Array, Float

NORM_EPS = 1e-6  # openpi's, for layer norm and RMS norm alike
UNROLLED_DEPTHS = {"none": 6, "dots": 3, "full": 3}
"""By remat, up to how many layers are written out one by one.

A scan writes what the backward pass keeps into stacked arrays, which takes CPUs longer than computing it. But where
layers are to be computed twice, the compiler for CPUs holds on to more of them if they are written out.
"""

Initializer = Callable[..., Array]
Remat = Literal["none", "dots", "full"]
Layer = TypeVar("Layer", bound=nnx.Module)

zeros = nnx.initializers.zeros_init()
ones = nnx.initializers.ones_init()
lecun_normal = nnx.initializers.lecun_normal()
xavier_uniform = nnx.initializers.xavier_uniform()


def parameter(rngs: nnx.Rngs, init: Initializer, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
    """Returns a float32 parameter whose axes carry the logical names that `sharding.RULES` maps to mesh axes."""
    return nnx.Param(nnx.with_partitioning(init, axes)(rngs.params(), shape, jnp.float32))


def kernel_as(kernel: nnx.Param, dtype: jnp.dtype) -> Array:
    """Returns a kernel ready for use: in the activations' type and, on a mesh, gathered after the cast."""
    return gathered(kernel[...].astype(dtype))


class Adaptable(nnx.Module):
    """A module with one kernel, which may have an adapter: then its factors are the parameters lora_a and lora_b."""

    low_rank: LowRank | None
    lora_a: nnx.Param
    lora_b: nnx.Param

    def add_adapter(
        self, kernel_axes: dict[str, int], adapter: AdapterConfig, factors: Factors | None, *, rngs: nnx.Rngs
    ) -> None:
        """Makes the factors for a kernel of the given axes, {logical name: size}; none for rank 0."""
        self.low_rank = None
        if not adapter.rank or factors is None:
            return
        a_axes, b_axes = factor_shapes(factors, kernel_axes, adapter.rank)
        sizes = dict(zip(factors.a, a_axes.values(), strict=True))
        fan_in = int(np.prod([sizes[letter] for letter in factors.inputs]))

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return uniform_init(key, (fan_in, int(np.prod(shape)) // fan_in), dtype).reshape(shape)

        self.low_rank = LowRank(factors, adapter.alpha / adapter.rank)
        keys = nnx.Rngs(rngs.lora())  # of their own, so that all else is drawn as without adapters
        self.lora_a = parameter(keys, init, tuple(a_axes.values()), tuple(a_axes))
        self.lora_b = parameter(keys, zeros, tuple(b_axes.values()), tuple(b_axes))

    def with_adapter(
        self, y: Float[Array, "..."], equation: str, x: Float[Array, "..."], *, part: int | EllipsisType = ...
    ) -> Float[Array, "..."]:
        """Returns `y`, the einsum of `x` and the kernel, with what the adapter adds to it, if there is one.

        Of kernels that are fused, `part` says which one `y` and the equation are about; default: all.
        """
        if self.low_rank is None:
            return y
        return y + self.low_rank(equation, x, self.lora_a[...][part], self.lora_b[...][part])


def linear_equation(factors: Factors, num_inputs: int) -> str:
    """Returns the product of tokens and a kernel over the kernel's first axes, as for einsum."""
    inputs, outputs = factors.kernel[:num_inputs], factors.kernel[num_inputs:]
    return f"...{inputs},{factors.kernel}->...{outputs}"


class Linear(Adaptable):
    """Affine map from the axes `inputs` to the axes `outputs`, both {logical name: size}; shape [*inputs, *outputs].

    With an adapter of a rank above 0 it also has the factors `lora_a` and `lora_b`.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer = lecun_normal,
        bias_init: Initializer = zeros,
        adapter: AdapterConfig = NO_ADAPTER,
        factors: Factors | None = None,
    ):
        fan_in, fan_out = (int(np.prod(list(axes.values()))) for axes in (inputs, outputs))

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return kernel_init(key, (fan_in, fan_out), dtype).reshape(shape)

        self.num_inputs = len(inputs)
        self.kernel = parameter(rngs, init, (*inputs.values(), *outputs.values()), (*inputs, *outputs))
        self.bias = parameter(rngs, bias_init, tuple(outputs.values()), ("bias",) * len(outputs))
        self.add_adapter(inputs | outputs, adapter, factors, rngs=rngs)
        self.equation = "" if factors is None else linear_equation(factors, len(inputs))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the map of the last axes of `x`, computed in its type."""
        y = jnp.tensordot(x, kernel_as(self.kernel, x.dtype), self.num_inputs) + self.bias[...].astype(x.dtype)
        return self.with_adapter(y, self.equation, x)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.scale = parameter(rngs, ones, (width,), ("norm",))
        self.bias = parameter(rngs, zeros, (width,), ("norm",))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns `x` normalised over its last axis, in its type."""
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPS)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


def rms_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Returns `x` in float32 with a root mean square of one over its last axis."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS)


class RMSNorm(nnx.Module):
    """Gemma's RMS norm: the stored scale is an offset from one."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.scale = parameter(rngs, zeros, (width,), ("norm",))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns `x` normalised over its last axis, in its type."""
        return (rms_normalize(x) * (1 + self.scale[...])).astype(x.dtype)


class FixedRMSNorm(nnx.Module):
    """Gemma's RMS norm in an adaptive one's place: the same whatever the condition, and its gate is open."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.scale = parameter(rngs, zeros, (width,), ("norm",))

    def modulation_by(self, condition: Float[Array, "b f c"]) -> Float[Array, "b f 1 0"]:
        """Returns what the condition makes of the norm: nothing."""
        return jnp.zeros((*condition.shape[:2], 1, 0), jnp.float32)

    def __call__(
        self, x: Float[Array, "b f t d"], modulation: Float[Array, "#b #f 1 0"]
    ) -> tuple[Float[Array, "b f t d"], Float[Array, "1 1 1 1"]]:
        """Returns `x` normalised, in its type, and a float32 gate of one."""
        return (rms_normalize(x) * (1 + self.scale[...])).astype(x.dtype), jnp.ones((1, 1, 1, 1), jnp.float32)


class AdaptiveRMSNorm(nnx.Module):
    """RMS norm whose scale, shift and residual gate are a linear function of a condition; all zero at first."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.modulation = Linear({"embed": width}, {"modulation": 3 * width}, rngs=rngs, kernel_init=zeros)

    def modulation_by(self, condition: Float[Array, "b f d"]) -> Float[Array, "b f 1 m"]:
        """Returns the norm's scale, shift and gate under a condition, float32, one after the other."""
        return self.modulation(condition.astype(jnp.float32))[:, :, None, :]

    def __call__(
        self, x: Float[Array, "b f t d"], modulation: Float[Array, "#b #f 1 m"]
    ) -> tuple[Float[Array, "b f t d"], Float[Array, "#b #f 1 d"]]:
        """Returns `x` normalised and modulated, in its type, and the float32 gate for what is computed from it."""
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        return (rms_normalize(x) * (1 + scale) + shift).astype(x.dtype), gate


ExpertNorm = type[AdaptiveRMSNorm] | type[FixedRMSNorm]


def stack_layers(create: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs) -> Layer:
    """Returns one module whose parameters are those of `depth` layers, each drawn by itself, stacked on axis 0."""
    stacked = nnx.vmap(create, in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    return nnx.split_rngs(splits=depth)(stacked)(rngs)


def run_layers(
    layers: Layer,
    body: Callable[[Layer, Array, Any], tuple[Any, Callable[[], Array]]],  # Any: pytrees with a leading axis of layers
    x: Array,
    *,
    remat: Remat,
    per_layer: Any = None,  # Any: as above
    skip_last: bool = False,
) -> tuple[Array, Any]:
    """Returns `x` after every layer, and the layers' outputs stacked on axis 0.

    A few layers are written out (`UNROLLED_DEPTHS`); more share one `scan`, which compiles once for all.

    Args:
        layers: parameters of all layers, from `stack_layers`.
        body: takes a layer, `x` and `per_layer[i]`; returns the layer's output, and a function for the next `x`.
        x: what the layers pass on.
        remat: what the backward pass recomputes.
        per_layer: extra inputs, stacked on axis 0.
        skip_last: whether only the outputs are wanted, so that the last layer need not compute the next `x`.
    """
    graph, params = nnx.split(layers)
    depth = jax.tree.leaves(params)[0].shape[0]

    def step(x: Array, inputs: tuple, is_last: Array | bool) -> tuple[Array, Any]:
        layer_params, extra = inputs
        output, next_x = body(nnx.merge(graph, layer_params), split_batch(x), extra)
        if not skip_last or is_last is False:
            return next_x(), output
        return (x if is_last is True else jax.lax.cond(is_last, lambda: x, next_x)), output

    if depth <= UNROLLED_DEPTHS[remat]:
        outputs = []
        for index in range(depth):
            inputs = jax.tree.map(lambda stacked, index=index: stacked[index], (params, per_layer))
            x, output = rematerialized(step, remat, in_scan=False)(x, inputs, index == depth - 1)
            outputs.append(output)
        return x, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)
    step = rematerialized(step, remat, in_scan=True)
    is_last = jnp.arange(depth) == depth - 1
    return jax.lax.scan(lambda x, inputs: step(x, *inputs), x, ((params, per_layer), is_last))


def rematerialized(step: Callable, remat: Remat, *, in_scan: bool) -> Callable:
    """Returns `step` so that its backward pass recomputes what `remat` says: nothing, all but products, everything."""
    options: dict[str, Any] = {"prevent_cse": False} if in_scan else {"static_argnums": 2}
    match remat:
        case "none":
            return step
        case "dots":
            # Products with weights have no batch axes; attention scores do, and are recomputed: they are the big ones.
            return jax.checkpoint(step, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, **options)
        case "full":
            return jax.checkpoint(step, **options)
