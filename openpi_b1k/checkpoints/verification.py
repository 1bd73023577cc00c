"""Whether a checkpoint is whole: looked at before it gets its name, and again when a run goes on from it.

Verified before a checkpoint gets its name: each item opens again and holds exactly the arrays that were given, each of
their shape and type, and the data behind each of them is there; every file has been listed with its size. Not verified:
each number, which would mean to read all of it back. Orbax's database keeps a checksum of each block and checks it when
the block is read.
"""

import json
import pathlib
from typing import Any

import jax

from openpi_b1k.checkpoints import orbax_tree
from openpi_b1k.typing import PyTree

MANIFEST_FILE = "manifest.json"
SHOWN = 4


class IncompleteCheckpointError(ValueError):
    """Files of a checkpoint are missing, cut off, or not those it was written with."""


def describe(tree: PyTree) -> dict[str, str]:
    """Returns {path: "type[shape]"} of each array in a tree of any containers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def verify(directory: pathlib.Path, expected: dict[str, dict[str, str]]) -> None:
    """Opens a checkpoint that has been written and lists its files in `manifest.json`.

    Args:
        directory: of the checkpoint, under whatever name.
        expected: for each item what `describe` says of the tree that was given.

    Raises:
        IncompleteCheckpointError: an array is missing, or has another shape or type.
    """
    for item, arrays in expected.items():
        problem = _difference(directory / item, arrays)
        if problem:
            raise IncompleteCheckpointError(f"{directory / item} does not hold what it was given: {problem}")
    sizes = {
        str(path.relative_to(directory)): path.stat().st_size
        for item in expected
        for path in sorted((directory / item).rglob("*"))
        if path.is_file()
    }
    manifest = {"arrays": {item: len(arrays) for item, arrays in expected.items()}, "files": sizes}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")


def check(checkpoint: pathlib.Path) -> None:
    """Compares the files of a checkpoint's arrays with the list that was made when it was written.

    Raises:
        IncompleteCheckpointError: one is missing or has another size, as after a copy that was cut off.
    """
    path = checkpoint / MANIFEST_FILE
    if not path.is_file():
        raise IncompleteCheckpointError(f"no {path}: {checkpoint} was not written to the end, or not copied whole")
    manifest: dict[str, Any] = json.loads(path.read_text())  # Any: JSON
    for name, size in manifest["files"].items():
        file = checkpoint / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise IncompleteCheckpointError(f"{file} {state}: copy {checkpoint} anew, or go on from an earlier one")


def require_same(checkpoint: pathlib.Path, item: str, abstract: PyTree) -> None:
    """Compares what an item of a checkpoint holds with what is to be read from it.

    Raises:
        ValueError: an array is missing or too many, or has another shape or type.
    """
    problem = _difference(checkpoint / item, describe(abstract))
    if problem:
        raise ValueError(
            f"{checkpoint / item} holds another state than this run's: {problem}. Leave model, optimizer, freeze, LoRA "
            f"and ema_decay as they were, or start a new run from its weights with --weights {checkpoint}"
        )


def _difference(directory: pathlib.Path, expected: dict[str, str]) -> str:
    """Returns in which arrays an item differs from what is expected; nothing if it does not."""
    found = describe(orbax_tree.shapes(directory))
    differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    shown = "; ".join(f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in differing[:SHOWN])
    return shown + (f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")


def _name(path: tuple[Any, ...]) -> str:  # Any: JAX's key types
    return "/".join(str(jax.tree_util.keystr((key,), simple=True)) for key in path)
