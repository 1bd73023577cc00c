"""Flow matching as pure functions: path, times, masked loss, Euler integration. Time 1 is noise, 0 the action."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.typing import Array, Bool, Float, PRNGKeyArray, PyTree, typecheck

MIN_TIME, TIME_RANGE = 0.001, 0.999
TIME_BETA = 1.5  # time follows Beta(1.5, 1) within its range: noisy times are drawn more often

Velocity = Callable[[Float[Array, "b ah ad"], Float[Array, ""]], Float[Array, "b ah ad"]]
"""From noisy actions and their flow time to the velocity."""


@runtime_checkable  # so that functions under typecheck can take one
class Guide(Protocol):
    """Leads the integration of a chunk towards actions that are known: `realtime`, `inpainting`."""

    def velocity(self, velocity: Velocity) -> Velocity:
        """Returns the velocity to follow instead."""
        ...

    def after_step(
        self, noisy_actions: Float[Array, "b ah ad"], noise: Float[Array, "b ah ad"], time: Float[Array, ""]
    ) -> Float[Array, "b ah ad"]:
        """Returns the noisy actions to go on with; `time` is theirs, `noise` what the integration started from."""
        ...


@typecheck
def flow_path(
    actions: Float[Array, "b #f ah ad"], noise: Float[Array, "b f ah ad"], time: Float[Array, "b f"]
) -> tuple[Float[Array, "b f ah ad"], Float[Array, "b f ah ad"]]:
    """Returns noisy actions at `time` and their target velocity."""
    t = time[..., None, None]
    return t * noise + (1 - t) * actions, noise - actions


def sample_time(key: PRNGKeyArray | Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns flow times in [0.001, 1], Beta(1.5, 1) * 0.999 + 0.001 as openpi draws them.

    Beta(a, 1) has the distribution function x**a, so a uniform number to the power 1/a follows it; this needs no
    rejection sampling.
    """
    return jax.random.uniform(key, shape) ** (1 / TIME_BETA) * TIME_RANGE + MIN_TIME


@typecheck
def masked_squared_errors(
    velocity: Float[Array, "b f ah ad"], target_velocity: Float[Array, "b f ah ad"], mask: Bool[Array, "b ah ad"]
) -> tuple[Float[Array, "b ad"], Float[Array, "b ad"]]:
    """Returns the sums of squared errors over flow samples and action steps, and how many entries each is of.

    `mask` says which entries count, the same for every flow sample. Sums are float32.
    """
    errors = jnp.square(velocity.astype(jnp.float32) - target_velocity.astype(jnp.float32))
    sums = jnp.sum(jnp.where(mask[:, None], errors, 0.0), axis=(1, 2))
    return sums, jnp.sum(mask, axis=1, dtype=jnp.float32) * velocity.shape[1]


@typecheck
def mean_errors(
    errors: Float[Array, "b ad"], counts: Float[Array, "b ad"]
) -> tuple[Float[Array, ""], Float[Array, " ad"]]:
    """Returns the mean squared error over all entries, and per action dim; 0 where there are none."""
    per_dim, count = jnp.sum(errors, axis=0), jnp.sum(counts, axis=0)
    return jnp.sum(per_dim) / jnp.maximum(jnp.sum(count), 1), per_dim / jnp.maximum(count, 1)


def masked_mean_loss(
    velocity: Float[Array, "b f ah ad"], target_velocity: Float[Array, "b f ah ad"], mask: Bool[Array, "b ah ad"]
) -> tuple[Float[Array, ""], Float[Array, " ad"]]:
    """Returns the float32 mean squared error over the entries that count, overall and per action dim.

    `mask` says which entries count, the same for every flow sample. Where none does, the mean is 0.
    """
    return mean_errors(*masked_squared_errors(velocity, target_velocity, mask))


def flow_times(num_flow_steps: int) -> np.ndarray:
    """Returns the flow times at which `integrate` asks for the velocity, float32 [steps], equal to the bit.

    Raises:
        ValueError: fewer than one step is asked for.
    """
    check_num_flow_steps(num_flow_steps)
    differences = np.full(num_flow_steps, -1.0 / num_flow_steps, np.float32)
    differences[0] = 1.0
    return np.cumsum(differences, dtype=np.float32)


def integrate(
    velocity: Callable[..., Float[Array, "b ah ad"]],
    noise: Float[Array, "b ah ad"],
    *,
    num_flow_steps: int,
    guide: Guide | None = None,
    per_step: PyTree = (),
) -> Float[Array, "b ah ad"]:
    """Returns actions: `num_flow_steps` equal Euler steps of `velocity(noisy_actions, time, *known of the step)`.

    Steps are counted as integers, so that their number never depends on rounding; time is summed in float32 as
    openpi sums it, because the time embedding tells the last bit of it apart. A guide changes the velocity, and the
    noisy actions after each step; without one nothing changes.

    Args:
        velocity: from noisy actions, their flow time, and this step's part of each of `per_step`.
        noise: to start from, at time 1.
        num_flow_steps: from there to time 0.
        guide: where to lead.
        per_step: a tuple of what is known of the steps before, pytrees with a leading axis of steps.

    Raises:
        ValueError: fewer than one step is asked for.
    """
    check_num_flow_steps(num_flow_steps)
    step_size = jnp.float32(-1.0 / num_flow_steps)

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        noisy_actions, time = state
        known = jax.tree.map(lambda steps: steps[i], per_step)

        def here(noisy_actions: Array, time: Array) -> Array:
            return velocity(noisy_actions, time, *known)

        followed = here if guide is None else guide.velocity(here)
        noisy_actions, time = noisy_actions + step_size * followed(noisy_actions, time), time + step_size
        return noisy_actions if guide is None else guide.after_step(noisy_actions, noise, time), time

    return jax.lax.fori_loop(0, num_flow_steps, step, (noise, jnp.float32(1.0)))[0]


def check_num_flow_steps(num_flow_steps: int) -> None:
    """Raises ValueError for fewer than one step."""
    if num_flow_steps < 1:
        raise ValueError(f"num_flow_steps must be at least 1; got {num_flow_steps}")
