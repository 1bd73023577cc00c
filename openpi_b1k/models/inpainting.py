"""Soft inpainting: a chunk that begins with actions known before, held on their flow path for most of the way.

After each step of the integration the kept actions are put on the straight path from their noise to their values, and
what that moved them by is carried on to the later actions through the correlation of chunks. Below a flow time
all entries flow freely, so that the chunk meets the kept actions closely, not exactly.
Source: BEHAVIOR-1K challenge 2025, the winner's `models/pi_behavior.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from openpi_b1k.models.flow_matching import Velocity
from openpi_b1k.typing import Array, Bool, Float

MAX_CORRECTION = 1.0
"""Of a normalised action: a sample whose later actions would move further is not corrected in this step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inpainting:
    """What a sampler needs to begin chunks with kept actions. A pytree: new numbers of the same shapes compile nothing.

    Axes: `k` kept steps, `a` entries of the robot's actions; entries beyond them, which pad, stay as they are.
    """

    actions: Float[Array, "b k a"]
    """The kept actions, normalised as the model's output; any finite numbers where there are none."""
    is_known: Bool[Array, " b"]
    """Whether a sample has kept actions; false leaves it alone."""
    gain: Float[Array, "u o"] | None
    """How the entries after the kept ones follow these; None: not at all.

    It is Sigma_UO Sigma_OO^-1 of the correlation Sigma of normalised chunks, steps before entries: u = (ah - k) a,
    o = k a.
    """
    min_time: float = dataclasses.field(default=0.3, metadata={"static": True})
    """Flow time above which the kept actions are held."""

    def velocity(self, velocity: Velocity) -> Velocity:
        """Returns the velocity as it is: all happens between steps."""
        return velocity

    def after_step(
        self, noisy_actions: Float[Array, "b ah ad"], noise: Float[Array, "b ah ad"], time: Float[Array, ""]
    ) -> Float[Array, "b ah ad"]:
        """Returns the noisy actions at `time` with the kept ones on their path, and the later ones carried along.

        Args:
            noisy_actions: after a step of the integration.
            noise: that the integration started from.
            time: of `noisy_actions`.
        """
        b, k, a = self.actions.shape
        is_held = (self.is_known & (time > self.min_time))[:, None, None]
        before = noisy_actions[:, :k, :a]
        on_path = (1 - time) * self.actions + time * noise[:, :k, :a]
        if self.gain is not None:
            later = noisy_actions[:, k:, :a]
            # Full float32 on every device: the gain inverts a correlation that may be badly conditioned.
            moved = (on_path - before).reshape(b, -1)
            change = jnp.matmul(moved, self.gain.T, precision="highest").reshape(later.shape)
            is_small = jnp.max(jnp.abs(change), axis=(1, 2), keepdims=True) <= MAX_CORRECTION
            noisy_actions = noisy_actions.at[:, k:, :a].set(jnp.where(is_held & is_small, later + change, later))
        return noisy_actions.at[:, :k, :a].set(jnp.where(is_held, on_path, before))
