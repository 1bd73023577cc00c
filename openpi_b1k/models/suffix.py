"""Noisy actions and flow time to suffix tokens and condition, and the expert's output to a velocity."""

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models.layers import Linear
from openpi_b1k.models.tokens import TokenGroup
from openpi_b1k.typing import Array, Float, typecheck

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time embedding, in units of flow time; openpi's


@typecheck
def time_embedding(time: Float[Array, "*b"], width: int) -> Float[Array, "*b {width}"]:
    """Returns float32 sines, then cosines, of flow time at `width // 2` periods spaced evenly in their logarithm."""
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** jnp.linspace(0.0, 1.0, width // 2, dtype=jnp.float32)
    # Angles reach 1571 rad, where float32 is coarse: the order of operations is openpi's, so that both round alike.
    angle = time.astype(jnp.float32)[..., None] * (1.0 / period * 2 * jnp.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Pi05Suffix(nnx.Module):
    """pi0.5: the state is in the prompt, so the suffix is the actions alone; time enters by adaptive norms."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.action_expert.width
        actions, embed, hidden = {"action": config.action_dim}, {"embed": width}, {"hidden": width}
        self.width = width
        self.action_in_proj = Linear(actions, embed, rngs=rngs)
        self.time_mlp_in = Linear(embed, hidden, rngs=rngs)
        self.time_mlp_out = Linear(embed, hidden, rngs=rngs)
        self.action_out_proj = Linear(embed, actions, rngs=rngs)

    @typecheck
    def embed(
        self, noisy_actions: Float[Array, "b f ah ad"], time: Float[Array, "b f"], *, dtype: jnp.dtype
    ) -> tuple[TokenGroup, Float[Array, "b f d"]]:
        """Returns one token per action, all in one block, and the float32 condition of the adaptive norms."""
        tokens = self.action_in_proj(noisy_actions.astype(jnp.float32)).astype(dtype)
        b, _, num_actions, _ = tokens.shape
        mask = jnp.ones((b, num_actions), bool)
        starts_block = (True,) + (False,) * (num_actions - 1)
        condition = jax.nn.swish(self.time_mlp_in(time_embedding(time, self.width)))
        condition = jax.nn.swish(self.time_mlp_out(condition))
        return TokenGroup(tokens, mask, starts_block), condition

    def velocity(self, suffix_out: Float[Array, "b f ah d"]) -> Float[Array, "b f ah ad"]:
        """Returns the float32 velocity of the flow for each action."""
        return self.action_out_proj(suffix_out.astype(jnp.float32))
