"""What is logged once per run, before the first step."""

import logging
import math

import jax
import jax.numpy as jnp

from openpi_b1k.config import serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.observation import Batch
from openpi_b1k.training.state import TrainState
from openpi_b1k.typing import Array, PyTree

logger = logging.getLogger(__name__)


def log_run(config: TrainConfig, mesh: jax.sharding.Mesh, state: TrainState) -> None:
    """Logs config, mesh, parameters by group and bytes per device. `state` may be abstract."""
    fields = "".join(f"\n  {name}: {value!r}" for name, value in serialize.flatten(config).items())
    logger.info("config:%s", fields)
    devices = mesh.devices.ravel()
    logger.info("mesh: %s over %d x %s", dict(mesh.shape), devices.size, devices[0].device_kind)
    for name, params in state.params.items():
        logger.info("parameters: %-14s %13s", name, f"{count(params):,}")
    total = count(state.params)
    logger.info(
        "parameters: %-14s %13s; bytes per device: %s of parameters, %s of optimiser and average",
        "all",
        f"{total:,}",
        f"{bytes_per_device(state.params):,}",
        f"{bytes_per_device((state.opt_state, state.ema_params)):,}",
    )


def log_batch(batch: Batch) -> None:
    """Logs each array of a batch as `name shape dtype [min, max]`."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    ranges = jax.device_get(_ranges([array for _, array in leaves]))
    lines = [
        f"\n  {jax.tree_util.keystr(path, simple=True, separator='.')} {array.shape} {array.dtype} [{low}, {high}]"
        for (path, array), (low, high) in zip(leaves, ranges, strict=True)
    ]
    logger.info("first batch:%s", "".join(lines))


@jax.jit
def _ranges(arrays: list[Array]) -> list[tuple[Array, Array]]:
    return [(jnp.min(array), jnp.max(array)) for array in arrays]


def count(params: PyTree) -> int:
    """Returns how many numbers a tree of arrays holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that the arrays of a tree take on each device; their shardings divide them evenly."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
