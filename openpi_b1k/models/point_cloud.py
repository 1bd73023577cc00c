"""A point cloud as tokens: one per group of points."""

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.models.layers import Linear, Remat
from openpi_b1k.typing import Array, Float, typecheck


class PointNet(nnx.Module):
    """Maps each point by the same MLP and keeps each feature's maximum over a group, so the points' order is void.

    Its two hidden layers are half as wide as the tokens: 3 -> 1024 -> 1024 -> 2048 at full size.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        hidden = width // 2
        self.mlp_in = Linear({"xyz": 3}, {"hidden": hidden}, rngs=rngs)
        self.mlp_hidden = Linear({"embed": hidden}, {"hidden": hidden}, rngs=rngs)
        self.mlp_out = Linear({"hidden": hidden}, {"embed": width}, rngs=rngs)

    @typecheck
    def __call__(self, points: Float[Array, "b g p 3"], *, dtype: jnp.dtype, remat: Remat) -> Float[Array, "b g d"]:
        """Returns one token per group in `dtype`; coordinates in m enter in float32, as bfloat16 rounds 9 m by 3 cm."""

        def tokens(points: Array) -> Array:
            x = jax.nn.gelu(self.mlp_in(points.astype(jnp.float32))).astype(dtype)
            return jnp.max(self.mlp_out(jax.nn.gelu(self.mlp_hidden(x))), axis=-2)

        # Kept for the backward pass, thousands of points per sample would take more memory than the VLM's layers.
        return (tokens if remat == "none" else jax.checkpoint(tokens))(points)
