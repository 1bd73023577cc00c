"""Real-time chunking: a chunk guided to agree with the one that is executed while it is computed.

    step of the new chunk   0 1 2 3 4 5 6 7 8 9
    old chunk               x x x x x x x          overlap 7: what was left of it at the observation
    weight                  1 1 . . . . . 0 0 0    delay 2: executed before the new chunk is there
                            fixed  soft   free

Flow time 1 is noise and 0 the action, so with the paper's tau = 1 - time the velocity's sign is the other one.
Source: Black, Galliker, Levine, "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.models.flow_matching import Velocity
from openpi_b1k.typing import Array, Float, typecheck


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RealTimeGuide:
    """What a sampler needs to continue old chunks. A pytree: new numbers of the same shapes compile nothing."""

    actions: Float[Array, "b ah ad"]
    """The old chunks from the new ones' first step on, normalised as the model's output; any finite numbers where the
    weight is 0."""
    weights: Float[Array, "b ah ad"]
    """In [0, 1], 0 for what is free: all of a sample without an old chunk, and entries that pad the robot's."""
    max_weight: float = dataclasses.field(default=5.0, metadata={"static": True})
    """The paper's beta, above 0."""

    def velocity(self, velocity: Velocity) -> Velocity:
        """Returns the guided velocity: v - min(beta, weight(time)) * J' (weights * (actions - clean)).

        `clean` = noisy actions - time * v is what the velocity takes for the actions, J its derivative by the noisy
        actions; each call costs one forward and one backward pass of `velocity`. Where all weights of a sample
        are 0, its velocity is as it was.
        """

        def guided(noisy_actions: Array, time: Array) -> Array:
            def clean_actions(noisy_actions: Array) -> tuple[Array, Array]:
                v = velocity(noisy_actions, time)
                return noisy_actions - time * v, v

            clean, pull_back, v = jax.vjp(clean_actions, noisy_actions, has_aux=True)
            [correction] = pull_back(self.weights * (self.actions - clean))
            return v - guidance_weight(time, self.max_weight) * correction

        return guided

    def after_step(
        self, noisy_actions: Float[Array, "b ah ad"], noise: Float[Array, "b ah ad"], time: Float[Array, ""]
    ) -> Float[Array, "b ah ad"]:
        """Returns the noisy actions as they are: guiding is all in the velocity."""
        del noise, time
        return noisy_actions


@typecheck
def guidance_weight(time: Float[Array, ""], max_weight: float) -> Float[Array, ""]:
    """Returns min(max_weight, (time^2 + (1 - time)^2) / (time (1 - time))); max_weight at times 1 and 0."""
    noise_part, action_part = jnp.square(time), jnp.square(1 - time)
    product = time * (1 - time)
    is_inside = product > 0
    unbounded = (noise_part + action_part) / jnp.where(is_inside, product, 1.0)
    return jnp.where(is_inside, jnp.minimum(unbounded, max_weight), max_weight)


def soft_mask(action_horizon: int, *, delay: int, overlap: int) -> np.ndarray:
    """Returns the weight of each step of the new chunk, float32 [ah].

    It is 1 before `delay`, 0 from `overlap` on, and between them, with c = (overlap - step) / (overlap - delay + 1),
    c (exp(c) - 1) / (e - 1), which falls from below 1 to above 0.

    Args:
        action_horizon: steps of the chunk, `ah`.
        delay: steps that the old chunk will have acted when the new one is there.
        overlap: steps at which the old chunk has actions: the action horizon less the execution horizon.

    Raises:
        ValueError: 0 <= delay <= overlap <= action horizon does not hold.
    """
    if not 0 <= delay <= overlap <= action_horizon:
        raise ValueError(
            f"0 <= delay <= overlap <= action horizon must hold; got {delay}, {overlap} and {action_horizon}"
        )
    steps = np.arange(action_horizon)
    falling = (overlap - steps) / (overlap - delay + 1)
    soft = falling * np.expm1(falling) / np.expm1(1)
    return np.select([steps < delay, steps < overlap], [np.ones(action_horizon), soft], 0.0).astype(np.float32)
