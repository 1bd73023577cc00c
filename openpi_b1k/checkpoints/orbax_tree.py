"""Trees of arrays as Orbax holds them on disk: their shapes, and reading them straight into shards."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from openpi_b1k.typing import PyTree


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

    Args:
        directory: an Orbax item.
        abstract: the tree to read, each leaf a ShapeDtypeStruct with its sharding. Arrays are cast to its dtypes.
        is_partial: whether the directory may hold more than `abstract`, which is then left unread.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=is_partial)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(directory.absolute()), args=args)
