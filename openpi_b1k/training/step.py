"""One update: loss, gradient, optimiser, moving average. A pure function; the loop jits it and donates the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch
from openpi_b1k.training.accumulation import loss_and_gradients
from openpi_b1k.training.optimizer import learning_rate_schedule
from openpi_b1k.training.state import TrainState
from openpi_b1k.training.trainable import groups
from openpi_b1k.typing import Array, Params, PyTree

Metrics = dict[str, Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train_step(model: Model, optimizer: optax.GradientTransformation, config: TrainConfig) -> StepFunction:
    """Returns a function from (state, batch) to (state after one update, metrics as device arrays).

    An update whose loss or gradient is not finite is skipped: then only `step` goes on, and all else stays, bit for
    bit. What is drawn at random depends on the seed and the step alone, so a resumed run draws what an uninterrupted
    one would.

    The metrics, over trained parameters where they are of parameters:

        loss, loss_per_dim [ad]           before the update
        source_loss [s], source_count [s] mean over a source's entries, 0 if it has none, and how many it has
        grad_norm, grad_norm/<group>      before clipping
        update_norm/<group>               of the parameters' change; 0 where it is skipped
        param_norm                        after the update
        learning_rate                     of this update
        is_finite                         whether it was made

    Raises:
        ValueError: `config.microbatches` is still auto.
    """
    learning_rate = learning_rate_schedule(config.schedule, config.num_steps)
    measure = loss_and_gradients(model, config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        errors, gradients = measure(state, batch)
        count = jnp.sum(errors.dim_counts)
        loss = jnp.sum(errors.per_dim) / jnp.maximum(count, 1)
        grad_norm, rate = optax.tree.norm(gradients), learning_rate(state.step)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda direction: jnp.where(is_finite, -rate * direction, 0.0), directions)
        params: Params = optax.apply_updates(state.params, updates)  # type: ignore[assignment]  # a dict comes back
        ema_params = state.ema_params
        if ema_params is not None and config.ema_decay is not None:
            ema_params = moving_average(ema_params, params, ema_decay(config.ema_decay, state.step + 1))
        kept = state.params, state.opt_state, state.ema_params
        params, opt_state, ema_params = choose(is_finite, (params, opt_state, ema_params), kept)

        metrics = {
            "loss": loss,
            "loss_per_dim": errors.per_dim / jnp.maximum(errors.dim_counts, 1),
            "source_loss": errors.per_source / jnp.maximum(errors.source_counts, 1),
            "source_count": errors.source_counts,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": rate,
            "is_finite": is_finite,
        }
        for name, tree in (("grad_norm", gradients), ("update_norm", updates)):
            metrics |= {f"{name}/{group}": optax.tree.norm(leaves) for group, leaves in groups(tree).items()}
        return TrainState(state.step + 1, params, state.frozen, opt_state, ema_params), metrics

    return step


def choose(condition: Array, one: PyTree, other: PyTree) -> PyTree:
    """Returns the arrays of one tree or those of another like it, to the bit."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


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
