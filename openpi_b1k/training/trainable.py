"""Which parameters a run trains: their groups, how each is stored, and trees of them taken apart and put together.

A parameter belongs to the role that its first name tells, or to `lora` if it is part of an adapter, wherever that is.
Adapters are always trained, roles unless the config freezes them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.config.optimization import ROLES
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.typing import Array, Params, PyTree

LORA = "lora"
GROUPS = (*ROLES, LORA)
ROLE_OF = {
    "vision": "vision",
    "vlm": "language",
    "action_expert": "action_expert",
    "suffix": "projections",
    "point_cloud": "projections",
}
ADAPTER_PREFIX = "lora_"
LARGE = ("kernel", "embedding")
"""Names of the parameters that are stored in the activations' type while they are frozen; the others are small."""


def role_of(path: tuple[str, ...] | str) -> str:
    """Returns the group of a parameter: one of the config's roles, or lora.

    Args:
        path: its names from the outermost on, or these joined by slashes.

    Raises:
        KeyError: the first name is of no role.
    """
    names = path.split("/") if isinstance(path, str) else path
    if names[-1].startswith(ADAPTER_PREFIX):
        return LORA
    if names[0] not in ROLE_OF:
        raise KeyError(f"{'/'.join(names)} belongs to no group; groups are told by the names {', '.join(ROLE_OF)}")
    return ROLE_OF[names[0]]


def is_trained(path: tuple[str, ...] | str, config: TrainConfig) -> bool:
    """Returns whether a run moves a parameter."""
    return role_of(path) not in config.frozen


def stored_dtype(path: tuple[str, ...] | str, config: TrainConfig) -> jnp.dtype:
    """Returns the type a run holds a parameter in: float32, and for frozen kernels and embeddings the activations'."""
    name = (path.split("/") if isinstance(path, str) else path)[-1]
    is_small = is_trained(path, config) or name not in LARGE
    return jnp.dtype(jnp.float32 if is_small else config.model.dtype)


def as_stored(params: Params, config: TrainConfig) -> Params:
    """Returns arrays in the types that the run holds them in."""
    return unflatten({path: leaf.astype(stored_dtype(path, config)) for path, leaf in flatten(params).items()})


def select(params: Params, is_wanted: Callable[[str], bool]) -> Params:
    """Returns the parameters whose path, names joined by slashes, is wanted, as a nested dict without empty ones."""
    return unflatten({path: leaf for path, leaf in flatten(params).items() if is_wanted(path)})


def partition(params: Params, config: TrainConfig) -> tuple[Params, Params]:
    """Returns (what is trained, what is frozen) of a tree of parameters, each as a nested dict without empty ones."""
    trained = select(params, lambda path: is_trained(path, config))
    return trained, select(params, lambda path: not is_trained(path, config))


def combine(*trees: Params) -> Params:
    """Returns one tree with the leaves of all; of a leaf that several have, the last one's."""
    leaves: dict[str, Any] = {}  # Any: leaves of any type
    for tree in trees:
        leaves |= flatten(tree)
    return unflatten(leaves)


def adapters(params: Params) -> Params:
    """Returns the leaves of adapters alone."""
    return select(params, lambda path: role_of(path) == LORA)


def without_adapters(params: Params) -> Params:
    """Returns all leaves but those of adapters."""
    return select(params, lambda path: role_of(path) != LORA)


def adapted_kernels(params: Params) -> Params:
    """Returns the kernels that have adapters beside them."""
    names = {path.rpartition("/")[0] for path in flatten(adapters(params))}
    return select(params, lambda path: path.endswith("/kernel") and path.rpartition("/")[0] in names)


def groups(params: Params) -> dict[str, list[Array]]:
    """Returns the leaves of each group that has any, in the order of `GROUPS`."""
    found: dict[str, list[Array]] = {group: [] for group in GROUPS}
    for path, leaf in flatten(params).items():
        found[role_of(path)].append(leaf)
    return {group: leaves for group, leaves in found.items() if leaves}


@dataclasses.dataclass(frozen=True)
class Group:
    """A line of the table of parameters."""

    name: str
    num_parameters: int
    is_trained: bool
    dtypes: tuple[str, ...]
    """Of its arrays, the commonest by bytes first."""
    bytes_per_device: int
    """Of the parameters alone: without gradients, moments or average."""

    def __str__(self) -> str:
        """Returns the line."""
        trained = "trained" if self.is_trained else "frozen"
        dtypes = ", ".join(self.dtypes)
        return f"{self.name:14} {self.num_parameters:>13,}  {trained:8} {self.bytes_per_device:>14,} bytes of {dtypes}"


def table(config: TrainConfig, params: Params) -> list[Group]:
    """Returns a line for each group of parameters.

    Args:
        config: of the run.
        params: all parameters as the run holds them, or their abstract values, with shardings.
    """
    rows = []
    for name, leaves in groups(params).items():
        nbytes: dict[str, int] = {}
        for leaf in leaves:
            nbytes[str(leaf.dtype)] = nbytes.get(str(leaf.dtype), 0) + math.prod(leaf.shape) * leaf.dtype.itemsize
        dtypes = tuple(sorted(nbytes, key=lambda dtype: -nbytes[dtype]))
        rows.append(Group(name, count(leaves), name not in config.frozen, dtypes, bytes_per_device(leaves)))
    return rows


def count(params: PyTree) -> int:
    """Returns how many numbers a tree of arrays holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that the arrays of a tree take on each device; their shardings divide them evenly."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
