"""One update: loss, gradient, optimiser, moving average. A pure function; the loop jits it and donates the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch
from openpi_b1k.training.optimizer import learning_rate_schedule
from openpi_b1k.training.state import TrainState, step_key
from openpi_b1k.typing import Array, Params

Metrics = dict[str, Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train_step(model: Model, optimizer: optax.GradientTransformation, config: TrainConfig) -> StepFunction:
    """Returns a function from (state, batch) to (state after one update, metrics as device arrays).

    The metrics: loss (before the update), loss_per_dim [ad], grad_norm (before clipping), param_norm (after the
    update), learning_rate (of this update). Noise and flow times are drawn from a key that depends on the seed and the
    step alone, so a resumed run draws what an uninterrupted one would.
    """
    learning_rate = learning_rate_schedule(config.schedule, config.num_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss(params: Params) -> tuple[Array, Array]:
            return model.loss(params, batch, step_key(config.seed, state.step), flow_samples=config.flow_samples)

        (value, per_dim), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Params = optax.apply_updates(state.params, updates)  # type: ignore[assignment]  # a dict comes back
        metrics = {
            "loss": value,
            "loss_per_dim": per_dim,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(params),
            "learning_rate": learning_rate(state.step),
        }
        ema_params = state.ema_params
        if ema_params is not None and config.ema_decay is not None:
            ema_params = moving_average(ema_params, params, ema_decay(config.ema_decay, state.step + 1))
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return step


def ema_decay(decay: float, completed_steps: Array) -> Array:
    """Returns min(decay, (1 + n) / (10 + n)) after n updates: early averages forget the initial weights sooner.

    A constant decay of 0.999 would still hold 37% of the initial weights after 1000 updates.

    Source: TensorFlow's `ExponentialMovingAverage(num_updates=...)`. openpi keeps the decay constant.
    """
    n = completed_steps.astype(jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def moving_average(average: Params, params: Params, decay: Array) -> Params:
    """Returns decay * average + (1 - decay) * params, in float32."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new.astype(jnp.float32), average, params)
