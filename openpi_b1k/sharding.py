"""The mesh, and where each array lies on it.

Parameters name their axes where they are created; `RULES` says which mesh axis a name is split over. Every large tensor
has a model width, called `embed`, so splitting that axis over `fsdp` leaves a part of each on every device, and only
biases and norms whole. The batch is split over both mesh axes.

Left to itself the compiler may follow the split widths into the activations and hold the whole batch on each device.
So the model, traced under `on_mesh`, says at each layer that activations stay split by batch and kernels are gathered.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from openpi_b1k.typing import Array, Params, PyTree

DATA, FSDP = "data", "fsdp"

RULES: dict[str, str | None] = {
    "embed": FSDP,  # width of vision tower, VLM or action expert
    "layers": None,
    "vocab": None,
    "heads": None,
    "kv_heads": None,
    "head_dim": None,
    "mlp": None,
    "fused": None,  # keys and values, or gate and up
    "projected": None,  # the VLM's width as output of the vision tower, whose own width is split
    "modulation": None,
    "hidden": None,
    "action": None,
    "xyz": None,
    "patch_row": None,
    "patch_column": None,
    "color": None,
    "patches": None,
    "one": None,
    "rank": None,
    "norm": None,
    "bias": None,
}


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:  # Any: jax.Device is no type
    """Returns a mesh with the axes data and fsdp over `devices` (default: all), neighbours on a host along fsdp.

    Raises:
        ValueError: the devices cannot be split into groups of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    if fsdp < 1 or len(devices) % fsdp:
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(
            f"fsdp {fsdp} does not divide the {len(devices)} devices of this run; choose one of {divisors}"
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def param_shardings(mesh: Mesh | AbstractMesh, abstract_params: Params, logical_axes: Params) -> PyTree:
    """Returns the NamedSharding of each parameter, in the structure of `abstract_params`.

    An axis whose length its mesh axis does not divide is not split: small models run on any mesh.

    Raises:
        KeyError: an axis has a name without a rule.
    """

    def sharding(param: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        split = [_mesh_axis(name, size, mesh) for name, size in zip(axes, param.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree.map(sharding, abstract_params, logical_axes)


def _mesh_axis(name: str, size: int, mesh: Mesh | AbstractMesh) -> str | None:
    if name not in RULES:
        raise KeyError(f"no sharding rule for the axis {name!r}; known axes: {', '.join(RULES)}")
    axis = RULES[name]
    return axis if axis is not None and size % mesh.shape[axis] == 0 else None


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def own_rows(array: Array) -> np.ndarray:
    """Returns the rows that this process's devices hold of an array split along its first axis, each once, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


_mesh: ContextVar[Mesh | None] = ContextVar("mesh of the model being traced", default=None)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Lets `split_batch`, `gathered` and `take_rows` place arrays on `mesh` while a function is traced.

    Without one, or with a mesh of one device, they leave everything as it is.
    """
    token = _mesh.set(None if mesh is None or mesh.size == 1 else mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def split_batch(x: Array) -> Array:
    """Returns `x` with its first axis split over all devices, if they divide it."""
    return _placed(x, (DATA, FSDP))


def gathered(kernel: Array) -> Array:
    """Returns `kernel` whole on every device; its gradient comes back summed over them."""
    return _placed(kernel)


def take_rows(table: Array, index: Array) -> Array:
    """Returns the rows of a table at `index` [b, t] without gathering the table, whose width is split over fsdp.

    Each device looks up its part of the width for the batch of its whole fsdp group; then parts are exchanged for rows.
    """
    rows = jnp.take(table, _placed(index, DATA), axis=0)
    return split_batch(_placed(rows, DATA, None, FSDP))


def _placed(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Returns `x` split over the given mesh axes while a mesh is set; unchanged if one does not divide its axis."""
    mesh = _mesh.get()
    if mesh is None:
        return x
    for size, names in zip(x.shape, axes, strict=False):
        if size % math.prod(mesh.shape[name] for name in ([names] if isinstance(names, str) else names or [])):
            return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))
