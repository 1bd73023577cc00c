"""Trees of arrays as Orbax holds them on disk: their shapes, and reading them straight into shards."""

import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from openpi_b1k.typing import PyTree

READ_AT_ONCE = 2**26
"""Bytes that are read at once in any case; more only as far as one array needs it."""
RESERVE = 1.01  # Orbax waits for ever for an array that is as large as what it may read at once


def shapes(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the tree stored in `directory` with a ShapeDtypeStruct for each array, reading no array.

    Raises:
        FileNotFoundError: `directory` is not an Orbax item.
    """
    if not (directory / "_METADATA").is_file():
        raise FileNotFoundError(f"{directory} holds no tree of arrays written by Orbax: it has no _METADATA")
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(directory.absolute())).tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def read(directory: pathlib.Path, abstract: PyTree, *, is_partial: bool = False) -> Any:  # Any: a tree like `abstract`
    """Returns the arrays stored in `directory`, each read straight into the shards that `abstract` gives it.

    Beside those shards, a host holds about as much as the largest array takes as stored, or READ_AT_ONCE. Orbax's own
    limit is 96 GB. It may read a part of an array several times, where shards are smaller than the parts it was
    written in.

    Args:
        directory: an Orbax item.
        abstract: the tree to read, each leaf a ShapeDtypeStruct with its sharding. Arrays are cast to its dtypes.
        is_partial: whether the directory may hold more than `abstract`, which is then left unread.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=is_partial)
    return _handler(directory).restore(epath.Path(directory.absolute()), args=args)


def num_bytes(leaf: Any) -> int:  # Any: an array, or its abstract value
    """Returns the bytes of one array, all its shards together, each part counted once."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def read_host(directory: pathlib.Path, abstract: PyTree) -> Any:  # Any: a tree like `abstract`
    """Returns some of the arrays stored in `directory`, whole and as stored, in this process's memory.

    Args:
        directory: an Orbax item.
        abstract: the part of its tree to read, each leaf a ShapeDtypeStruct as `shapes` gives it.
    """
    restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), abstract)
    return _handler(directory).restore(
        epath.Path(directory.absolute()),
        args=ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True),
    )


def _handler(directory: pathlib.Path) -> ocp.PyTreeCheckpointHandler:
    """Returns what reads an item, and reads at once no more than READ_AT_ONCE or its largest array."""
    largest = max((num_bytes(leaf) for leaf in jax.tree.leaves(shapes(directory))), default=0)
    at_once = RESERVE * max(largest, READ_AT_ONCE) / 1e9
    return ocp.PyTreeCheckpointHandler(restore_concurrent_gb=at_once)  # type: ignore[arg-type]  # used as a factor
