"""Weights in Orbax items with openpi's names: of openpi, comet and ours; dense or with openpi's adapters."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from openpi_b1k.checkpoints import contents, openpi_lora, openpi_rules, orbax_tree
from openpi_b1k.checkpoints.host_arrays import place, require_types
from openpi_b1k.checkpoints.rules import flatten, rename, unflatten
from openpi_b1k.checkpoints.weights_report import Match

METADATA = "_METADATA"
ROOT, VALUE = "params", "value"
FROM_OPENPI = (*openpi_rules.FROM_OPENPI, *openpi_lora.FROM_OPENPI)
TO_OPENPI = tuple(rule.inverse() for rule in FROM_OPENPI)


@dataclasses.dataclass(frozen=True)
class Item:
    """One Orbax item with weights."""

    directory: pathlib.Path
    has_value_leaves: bool
    """Whether each leaf lies under `value`, as openpi's training writes it."""
    stored: dict[str, jax.ShapeDtypeStruct]
    """Under our names, adapters' factors included, as stored."""
    adapted: tuple[str, ...]
    """Names of the kernels that have adapters."""

    @functools.cached_property
    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Our name -> abstract value, kernels merged with their adapters in float32."""
        merged = {name: jax.ShapeDtypeStruct(self.stored[name].shape, np.float32) for name in self.adapted}
        return {name: leaf for name, leaf in self.stored.items() if not openpi_lora.is_factor(name)} | merged

    def tree(self, leaves: dict[str, Any]) -> dict[str, Any]:  # Any: leaves are no type of a nested dict
        """Returns leaves, {our name: leaf}, as they lie in the item."""
        theirs = unflatten(rename(leaves, TO_OPENPI))
        return openpi_rules.with_value_leaves(theirs) if self.has_value_leaves else {ROOT: theirs}

    def leaves_of(self, tree: dict[str, Any]) -> dict[str, Any]:  # Any: as above
        """Returns what `tree` was given."""
        theirs = openpi_rules.without_value_leaves({ROOT: tree[ROOT]}) if self.has_value_leaves else tree[ROOT]
        return rename(flatten(theirs), FROM_OPENPI)


@dataclasses.dataclass(frozen=True)
class OrbaxWeights:
    """The weights of one or several items; where several hold a leaf, the first counts."""

    where: str
    items: tuple[Item, ...]
    lora_scale: float
    """alpha / rank of adapters in openpi's layout."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """None: every array of an Orbax item is a parameter."""

    @property
    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Our name -> abstract value as `read` returns it."""
        return self._leaves

    @functools.cached_property
    def _leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: leaf for item in reversed(self.items) for name, leaf in item.leaves.items()}

    @property
    def model_kind(self) -> openpi_rules.Kind | None:
        """pi05 or pi0; None if it does not show."""
        return openpi_rules.kind_of(self.leaves)

    def matches(self, names: Iterable[str]) -> list[Match]:
        """Returns the rules that name these leaves and their adapters, and of how many stored arrays each does."""
        stored = []
        for name in names:
            is_adapted = name in self._item_of(name).adapted
            stored += [name, *openpi_lora.factors_of(name)] if is_adapted else [name]
        counts = [(rule, sum(rule.apply(name) is not None for name in stored)) for rule in TO_OPENPI]
        return [Match(count, rule.target, rule.source) for rule, count in counts if count]

    def read(self, name: str) -> np.ndarray:
        """Returns one leaf in this process's memory, in the type of `leaves`.

        Beside it, up to as much is needed while it is decompressed.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self.leaves:
            raise KeyError(f"{self.where} has no parameter {name!r}")
        item = self._item_of(name)
        names = (name, *openpi_lora.factors_of(name)) if name in item.adapted else (name,)
        tree = orbax_tree.read_host(item.directory, item.tree({each: item.stored[each] for each in names}))
        arrays = item.leaves_of(tree)
        kernel, *factors = (arrays[each] for each in names)
        return openpi_lora.merge(name, kernel, *factors, scale=self.lora_scale) if factors else kernel

    def read_into(self, placed: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns leaves read straight into the shards that `placed`, {our name: abstract value}, gives them.

        Kernels with adapters are read whole by every process, one after the other.
        """
        read: dict[str, jax.Array] = {}
        for item in self.items:
            dense = {
                name: leaf for name, leaf in placed.items() if self._item_of(name) is item and name not in item.adapted
            }
            if dense:
                tree = orbax_tree.read(item.directory, item.tree(dense), is_partial=True)
                read |= item.leaves_of(tree)
        return read | {name: place(self.read(name), leaf) for name, leaf in placed.items() if name not in read}

    def _item_of(self, name: str) -> Item:
        return next(item for item in self.items if name in item.leaves)


def open_orbax(path: pathlib.Path, kind: str, lora_scale: float) -> OrbaxWeights:
    """Returns the weights of a checkpoint's directory, or of its params directory, reading none.

    Args:
        path: the directory.
        kind: `ema` or `live`, see `weights.open_weights`.
        lora_scale: alpha / rank of adapters in openpi's layout.

    Raises:
        FileNotFoundError: there are no weights at `path`.
        ValueError: an array there is no parameter of pi0 or pi0.5, the message names the nearest, or is not of a
            supported type, or an adapter does not fit its kernel.
    """
    directory = find_params(path)
    live = find_live(directory) if kind == "live" else None
    # What is trained first; all else is as in params/.
    items = [_open(each) for each in (live, directory) if each is not None]
    return OrbaxWeights(str(directory), tuple(items), lora_scale)


def _open(directory: pathlib.Path) -> Item:
    stored = orbax_tree.shapes(directory)
    if ROOT not in stored:
        raise ValueError(f"{directory} has no root {ROOT!r}, under which openpi stores weights; got {sorted(stored)}")
    has_value_leaves = all(path.endswith(f"/{VALUE}") for path in flatten(stored[ROOT]))
    item = Item(directory, has_value_leaves, {}, ())
    leaves = item.leaves_of(stored)
    require_types({name: leaf.dtype for name, leaf in leaves.items()}, str(directory))
    adapted = openpi_lora.adapted_kernels(leaves, str(directory))
    return dataclasses.replace(item, stored=leaves, adapted=adapted)


def find_params(path: pathlib.Path) -> pathlib.Path:
    """Returns the directory of the Orbax item that holds the weights to act with.

    Args:
        path: a checkpoint's directory or its params directory.

    Raises:
        FileNotFoundError: there are no weights at `path`.
    """
    directory = path / ROOT if (path / ROOT / METADATA).is_file() else path
    if not (directory / METADATA).is_file():
        hint = "give a checkpoint's directory or its params directory, or one with model.safetensors"
        if contents.completed_checkpoints(path):
            hint = contents.which_checkpoint(path)
        raise FileNotFoundError(f"no weights at {path}: {hint}")
    return directory


def find_live(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the directory of the Orbax item that holds the live weights besides a moving average.

    Args:
        directory: of the weights to act with.

    Returns:
        None where the run keeps no average, so that it acts with the live weights. Else an item with those weights that
        are trained; the others are not averaged.

    Raises:
        FileNotFoundError: the checkpoint has lost its train state.
    """
    train_state = directory.parent / "train_state"
    if not (train_state / METADATA).is_file():
        raise FileNotFoundError(
            f"{directory.parent} has no train_state/, so whether {directory.name}/ holds live weights or a moving "
            "average cannot be told; give a checkpoint that has it"
        )
    return train_state if ROOT in orbax_tree.shapes(train_state) else None
