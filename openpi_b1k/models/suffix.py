"""State, noisy actions and flow time to suffix tokens and condition, and the expert's output to a velocity.

The two kinds of model differ here alone: in what the suffix is, and in the norms of the expert that go with it.
Source: openpi `models/pi0.py` at 15a9616.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models.layers import AdaptiveRMSNorm, ExpertNorm, FixedRMSNorm, Linear
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

    expert_norm: ClassVar[ExpertNorm] = AdaptiveRMSNorm

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
        self,
        state: Float[Array, "b ad"],
        noisy_actions: Float[Array, "b f ah ad"],
        time: Float[Array, "b f"],
        *,
        dtype: jnp.dtype,
    ) -> tuple[TokenGroup, Float[Array, "b f d"]]:
        """Returns one token per action, all in one block, and the float32 condition of the adaptive norms."""
        tokens = self.action_in_proj(noisy_actions.astype(jnp.float32)).astype(dtype)
        b, _, num_actions, _ = tokens.shape
        mask = jnp.ones((b, num_actions), bool)
        starts_block = (True,) + (False,) * (num_actions - 1)
        return TokenGroup(tokens, mask, starts_block), self.condition(time)

    def condition(self, time: Float[Array, "b f"]) -> Float[Array, "b f d"]:
        """Returns the float32 condition of the adaptive norms; it depends on nothing but the flow time."""
        hidden = jax.nn.swish(self.time_mlp_in(time_embedding(time, self.width)))
        return jax.nn.swish(self.time_mlp_out(hidden))

    def velocity(self, suffix_out: Float[Array, "b f ah d"]) -> Float[Array, "b f ah ad"]:
        """Returns the float32 velocity of the flow for each action."""
        return self.action_out_proj(suffix_out.astype(jnp.float32))


class Pi0Suffix(nnx.Module):
    """pi0: a token of the state, then the actions, each of which has the time mixed in; the norms know no condition.

    The state sees no action, whatever the noise; the actions see the state and each other::

        starts_block   state 1   actions 1 0 0 ...
    """

    expert_norm: ClassVar[ExpertNorm] = FixedRMSNorm

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.action_expert.width
        actions, embed, hidden = {"action": config.action_dim}, {"embed": width}, {"hidden": width}
        self.width = width
        self.state_proj = Linear(actions, embed, rngs=rngs)
        self.action_in_proj = Linear(actions, embed, rngs=rngs)
        self.action_time_mlp_in = Linear({"embed": 2 * width}, hidden, rngs=rngs)
        self.action_time_mlp_out = Linear(embed, hidden, rngs=rngs)
        self.action_out_proj = Linear(embed, actions, rngs=rngs)

    @typecheck
    def embed(
        self,
        state: Float[Array, "b ad"],
        noisy_actions: Float[Array, "b f ah ad"],
        time: Float[Array, "b f"],
        *,
        dtype: jnp.dtype,
    ) -> tuple[TokenGroup, Float[Array, "b f 0"]]:
        """Returns the token of the state and one per action, and a condition without entries."""
        b, f, num_actions, _ = noisy_actions.shape
        state_token = self.state_proj(state.astype(jnp.float32))[:, None, None]
        actions = self.action_in_proj(noisy_actions.astype(jnp.float32))
        times = jnp.broadcast_to(time_embedding(time, self.width)[:, :, None], actions.shape)
        hidden = jax.nn.swish(self.action_time_mlp_in(jnp.concatenate([actions, times], axis=-1)))
        actions = self.action_time_mlp_out(hidden)
        state_token = jnp.broadcast_to(state_token, (b, f, 1, self.width))
        tokens = jnp.concatenate([state_token, actions], axis=2).astype(dtype)
        starts_block = (True, True) + (False,) * (num_actions - 1)
        return TokenGroup(tokens, jnp.ones((b, 1 + num_actions), bool), starts_block), self.condition(time)

    def condition(self, time: Float[Array, "b f"]) -> Float[Array, "b f 0"]:
        """Returns a condition without entries."""
        return jnp.zeros((*time.shape, 0))

    def velocity(self, suffix_out: Float[Array, "b f t d"]) -> Float[Array, "b f ah ad"]:
        """Returns the float32 velocity of the flow for each action; what came of the state is not used."""
        return self.action_out_proj(suffix_out[:, :, 1:].astype(jnp.float32))


SUFFIXES: dict[str, type[Pi05Suffix] | type[Pi0Suffix]] = {"pi05": Pi05Suffix, "pi0": Pi0Suffix}
"""By `ModelConfig.kind`."""
