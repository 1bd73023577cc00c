"""Loss and gradient of a batch, computed at once or piece by piece for the same result.

A piece takes an equal part of every device's rows, so no row moves to another device:

    rows of device 0 | of device 1        piece 0    piece 1
      0   1   2   3  |  4   5   6   7  ->  0 1 4 5    2 3 6 7

Its loss is the sum of its errors over what counts in the whole batch, so that pieces add up to the batch's mean however
masks lie in it. Noise, times and the images' variation are drawn for the whole batch before it is cut.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from openpi_b1k import sharding
from openpi_b1k.config.optimization import NO_AUGMENTATION
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.augment import augment
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch
from openpi_b1k.training.state import TrainState, augmentation_key, step_key
from openpi_b1k.training.trainable import combine, partition
from openpi_b1k.typing import Array, Float, Params, PRNGKeyArray, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Errors:
    """Squared errors of some rows, summed, and of how many entries: flow samples x action steps x dims."""

    per_dim: Float[Array, " ad"]
    dim_counts: Float[Array, " ad"]
    per_source: Float[Array, " s"]
    source_counts: Float[Array, " s"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What the loss of some rows depends on besides the parameters."""

    batch: Batch
    noise: Float[Array, "b f ah ad"]
    time: Float[Array, "b f"]
    image_keys: PRNGKeyArray
    """A key for each row."""


LossAndGradients = Callable[[TrainState, Batch], tuple[Errors, Params]]


def loss_and_gradients(model: Model, config: TrainConfig) -> LossAndGradients:
    """Returns a function from (state, batch) to (errors, gradients of their mean for the trained parameters).

    Gradients are float32 and lie where their parameters do. The function raises ValueError for a batch that devices and
    pieces cannot share evenly.

    Raises:
        ValueError: `config.microbatches` is still auto.
    """
    pieces = config.microbatches
    if pieces == "auto":
        raise ValueError("microbatches is still auto; give --microbatches, or resolve the config by the memory plan")

    def of_batch(state: TrainState, batch: Batch) -> tuple[Errors, Params]:
        rows = _rows(model, config, state, batch)
        total = jnp.maximum(jnp.sum(batch.action_mask, dtype=jnp.float32) * config.flow_samples, 1)

        def loss(trained: Params, rows: Rows) -> tuple[Float[Array, ""], Errors]:
            errors = _errors(model, config, combine(trained, state.frozen), rows)
            return jnp.sum(errors.per_dim) / total, errors

        gradient = jax.grad(loss, has_aux=True)
        if pieces == 1:
            gradients, errors = gradient(state.params, rows)
            return errors, gradients

        def add(sums: tuple[Params, Errors], piece: Rows) -> tuple[tuple[Params, Errors], None]:
            gradients, errors = jax.tree.map(jnp.add, sums, gradient(state.params, piece))
            return (_like_parameters(gradients, model, config), errors), None

        split = cut(rows, pieces, model.mesh)
        shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda leaf: leaf[0], split))
        gradients, errors = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        start = _like_parameters(gradients, model, config), errors
        (gradients, errors), _ = jax.lax.scan(add, start, split)
        return errors, gradients

    return of_batch


def _rows(model: Model, config: TrainConfig, state: TrainState, batch: Batch) -> Rows:
    """Returns a batch with everything that is drawn for it."""
    b = batch.actions.shape[0]
    noise, time = model.draw(step_key(config.seed, state.step), b, config.flow_samples)
    keys = jax.random.split(augmentation_key(config.seed, state.step), b)
    if batch.source is None:
        batch = dataclasses.replace(batch, source=jnp.zeros(b, jnp.int32))
    return Rows(batch, noise, time, keys)


def _errors(model: Model, config: TrainConfig, params: Params, rows: Rows) -> Errors:
    """Returns the errors of some rows, whose images are varied first."""
    batch = rows.batch
    if config.augmentation != NO_AUGMENTATION:
        observation = augment(batch.observation, rows.image_keys, config.augmentation)
        batch = dataclasses.replace(batch, observation=observation)
    errors, counts = model.squared_errors(params, batch, rows.noise, rows.time)
    num_sources = len(config.data.sources)
    is_of_source = jax.nn.one_hot(batch.source, num_sources, axis=0, dtype=bool)  # [s, b]
    return Errors(
        per_dim=jnp.sum(errors, axis=0),
        dim_counts=jnp.sum(counts, axis=0),
        per_source=jnp.sum(jnp.where(is_of_source, jnp.sum(errors, axis=1), 0.0), axis=1),
        source_counts=jnp.sum(jnp.where(is_of_source, jnp.sum(counts, axis=1), 0.0), axis=1),
    )


def cut(rows: PyTree, pieces: int, mesh: jax.sharding.Mesh | None) -> PyTree:
    """Returns arrays [b, ...] as [pieces, b / pieces, ...]: each piece an equal part of every device's rows, in order.

    Raises:
        ValueError: devices and pieces do not share the rows evenly.
    """
    num_devices = 1 if mesh is None else mesh.size

    def cut_array(array: Array) -> Array:
        b, *rest = array.shape
        if b % (num_devices * pieces):
            raise ValueError(
                f"a batch of {b} cannot be cut into {pieces} microbatches on {num_devices} devices: batch_size must be "
                f"a multiple of {num_devices * pieces}; change --batch-size or --microbatches"
            )
        array = array.reshape(num_devices, pieces, -1, *rest).swapaxes(0, 1).reshape(pieces, -1, *rest)
        if num_devices == 1 or mesh is None:
            return array
        axes = PartitionSpec(None, *sharding.batch_sharding(mesh).spec)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, axes))

    return jax.tree.map(cut_array, rows)


def _like_parameters(gradients: Params, model: Model, config: TrainConfig) -> Params:
    """Returns gradients split over the mesh as their parameters are."""
    if model.mesh is None or model.mesh.size == 1:
        return gradients
    shardings = sharding.param_shardings(model.mesh, model.abstract_params(), model.logical_axes())
    return jax.lax.with_sharding_constraint(gradients, partition(shardings, config)[0])
