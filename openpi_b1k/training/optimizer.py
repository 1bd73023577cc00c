"""AdamW after clipping, under a warm-up and a cosine."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.typing import Array, Params, PyTree

UNDECAYED = ("bias", "scale")


def learning_rate_schedule(config: ScheduleConfig, num_steps: int) -> Callable[[ArrayLike], Array]:
    """Returns the learning rate as a function of the completed updates.

    Update k (from 0) of n, after w of warm-up, uses

        k <  w:  peak * (k + 1) / (w + 1)
        k >= w:  final + (peak - final) * (1 + cos(pi * (k - w) / (n - 1 - w))) / 2

    so the first update already moves, update w is the first at the peak, and the run's last, n - 1, is at `final_lr`.
    w is the config's part of n, rounded, and n - 1 at most.

    Source: openpi `training/optimizer.py` (CosineDecaySchedule), whose warm-up this is; its cosine ends at a step count
    of its own (30,000 unless changed), ours at the run's last update.
    """
    warmup = min(round(config.warmup * num_steps), num_steps - 1)
    cosine_steps = max(num_steps - 1 - warmup, 1)

    def learning_rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step)
        rising = config.peak_lr * (step + 1) / (warmup + 1)
        progress = jnp.clip((step - warmup) / cosine_steps, 0.0, 1.0)
        falling = config.final_lr + (config.peak_lr - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, rising, falling).astype(jnp.float32)

    return learning_rate


def decay_mask(params: Params) -> PyTree:
    """Returns which parameters weight decay applies to: all but biases and norm scales.

    Told by name, since layers are stacked on axis 0 and heads are an axis: a bias of rank 1 is stored with rank 2 or 3.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimiser of a run: clip by the global norm, then AdamW with decay as `decay_mask` says.

    Its updates are not yet multiplied by the learning rate, nor negated: a step takes `learning_rate` of its own
    number, so that the rate goes on where an update is skipped and the optimiser's count does not.
    """
    adamw = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(adamw.clip_norm),
        optax.scale_by_adam(b1=adamw.b1, b2=adamw.b2, eps=adamw.eps, mu_dtype=jnp.dtype(adamw.first_moment)),
        optax.add_decayed_weights(adamw.weight_decay, mask=decay_mask),
    )
