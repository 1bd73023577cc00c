"""What is logged once per run, before the first step."""

import logging

import jax
import jax.numpy as jnp

from openpi_b1k.config import serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.observation import Batch
from openpi_b1k.training.state import TrainState, full
from openpi_b1k.training.trainable import bytes_per_device, count, table
from openpi_b1k.typing import Array

logger = logging.getLogger(__name__)


def log_run(config: TrainConfig, mesh: jax.sharding.Mesh, state: TrainState) -> None:
    """Logs config, mesh, parameters by group and bytes per device. `state` may be abstract."""
    fields = "".join(f"\n  {name}: {value!r}" for name, value in serialize.flatten(config).items())
    logger.info("config:%s", fields)
    devices = mesh.devices.ravel()
    logger.info("mesh: %s over %d x %s", dict(mesh.shape), devices.size, devices[0].device_kind)
    params = full(state)
    logger.info("parameters:%s", "".join(f"\n  {row}" for row in table(config, params)))
    logger.info(
        "parameters: %s; bytes per device: %s of parameters, %s of optimiser and average",
        f"{count(params):,}",
        f"{bytes_per_device(params):,}",
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
