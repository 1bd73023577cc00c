"""Reads weights, and nothing else, from any checkpoint with openpi's names: ours, openpi's, comet's."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax

from openpi_b1k import paths
from openpi_b1k.checkpoints import contents, openpi_rules, orbax_tree
from openpi_b1k.checkpoints.rules import flatten, require_same_keys, unflatten
from openpi_b1k.typing import Params, PyTree

logger = logging.getLogger(__name__)

ROOT, VALUE = "params", "value"
WeightsKind = Literal["ema", "live"]

# Which flags decide a parameter's shape, told by the beginning of its name; the first that fits counts.
SHAPE_FLAGS = (
    ("vision/pos_embedding", "--model.image-size, --model.vision.*"),
    ("vision/", "--model.vision.*, --model.vlm.width"),
    ("vlm/embedder", "--model.vocab-size, --model.vlm.width"),
    ("vlm/", "--model.vlm.*"),
    ("action_expert/", "--model.action-expert.*"),
    ("suffix/", "--model.action-dim, --model.action-expert.width"),
    ("point_cloud/", "--model.vlm.width"),
)
SHAPES_SHOWN = 6


def load_params(
    address: str | pathlib.Path,
    abstract: Params,
    shardings: PyTree,
    *,
    kind: WeightsKind = "ema",
    draw: Callable[[list[str]], Params] | None = None,
    log_level: int = logging.INFO,
) -> Params:
    """Returns the parameters stored at `address`, each read straight into its shards.

    Args:
        address: a checkpoint's directory or its params directory; a local path or what `paths.fetch` takes.
        abstract: the parameters to read, ShapeDtypeStructs under our names. Arrays are cast to their dtypes.
        shardings: a sharding for each.
        kind: `ema` reads the weights to act with, the moving average where the run kept one; `live` the others.
        draw: returns random parameters of the named groups, placed like the others. It is called for groups that
            openpi's models do not have, where the stored model has none of them either; None: that is refused.
        log_level: of the table of rules and how many arrays each of them named.

    Raises:
        FileNotFoundError: there are no weights at `address`.
        ValueError: the stored parameters are not the model's, the message names the nearest, or one has another shape.
    """
    directory = find_params(paths.fetch(str(address)))
    items = [_open(directory)]
    live = find_live(directory) if kind == "live" else None
    if live is not None:  # what is trained; all else is as in params/
        items.insert(0, _open(live))
    found = {name: leaf for item in reversed(items) for name, leaf in item.leaves.items()}
    absent = [] if draw is None else _absent_groups(found, abstract)
    wanted = {name: group for name, group in abstract.items() if name not in absent}
    expected = flatten(wanted)
    require_same_keys(found, expected, str(directory))
    _require_same_shapes(found, expected, directory)

    places = flatten({name: shardings[name] for name in wanted})
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name]) for name, leaf in expected.items()
    }
    read: dict[str, Any] = {}  # Any: jax.Array is no leaf type of a nested dict
    for item in items:
        names = placed.keys() & item.leaves.keys() - read.keys()
        if names:
            _log_rules(item, names, log_level)
            read |= _read(item, {name: placed[name] for name in names})
    params = unflatten({name: read[name] for name in expected})
    if draw is None or not absent:
        return params
    logger.warning("not in %s, so they start from random numbers: %s", directory, ", ".join(absent))
    return params | draw(absent)


def find_params(path: pathlib.Path) -> pathlib.Path:
    """Returns the directory of the Orbax item that holds the weights to act with.

    Args:
        path: a checkpoint's directory or its params directory.

    Raises:
        FileNotFoundError: there are no weights at `path`.
    """
    directory = path / "params" if (path / "params" / "_METADATA").is_file() else path
    if not (directory / "_METADATA").is_file():
        hint = "give a checkpoint's directory or its params directory"
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
    if not (train_state / "_METADATA").is_file():
        raise FileNotFoundError(
            f"{directory.parent} has no train_state/, so whether {directory.name}/ holds live weights or a moving "
            "average cannot be told; give a checkpoint that has it"
        )
    return train_state if ROOT in orbax_tree.shapes(train_state) else None


@dataclasses.dataclass(frozen=True)
class _Item:
    """Weights on disk."""

    directory: pathlib.Path
    has_value_leaves: bool
    """Whether each leaf lies under `value`, as openpi's training writes it."""
    leaves: dict[str, Any]  # Any: jax.ShapeDtypeStruct is no leaf type of a nested dict
    """Our name -> abstract value as stored."""


def _open(directory: pathlib.Path) -> _Item:
    """Returns what weights lie in an Orbax item."""
    stored = orbax_tree.shapes(directory)
    if ROOT not in stored:
        raise ValueError(f"{directory} has no root {ROOT!r}, under which openpi stores weights; got {sorted(stored)}")
    has_value_leaves = all(path.endswith(f"/{VALUE}") for path in flatten(stored[ROOT]))
    theirs = _without_root(stored, has_value_leaves)
    return _Item(directory, has_value_leaves, flatten(openpi_rules.from_openpi(theirs)))


def _read(item: _Item, placed: dict[str, Any]) -> dict[str, Any]:  # Any: as above
    """Returns {our name: array} of some of an item's weights."""
    theirs = openpi_rules.to_openpi(unflatten(placed))
    tree = openpi_rules.with_value_leaves(theirs) if item.has_value_leaves else {ROOT: theirs}
    restored = orbax_tree.read(item.directory, tree, is_partial=True)
    return flatten(openpi_rules.from_openpi(_without_root(restored, item.has_value_leaves)))


def _without_root(item: dict[str, Any], has_value_leaves: bool) -> dict[str, Any]:
    """Returns an Orbax item's parameters under openpi's names, with or without their value leaves."""
    return openpi_rules.without_value_leaves({ROOT: item[ROOT]}) if has_value_leaves else item[ROOT]


def _absent_groups(found: dict[str, Any], abstract: Params) -> list[str]:
    """Returns the groups that openpi does not have and of which the stored model holds no parameter."""
    return [
        group
        for group in openpi_rules.OURS_ALONE
        if group in abstract and not any(name.startswith(f"{group}/") for name in found)
    ]


def _require_same_shapes(found: dict[str, Any], expected: dict[str, Any], directory: pathlib.Path) -> None:
    """Checks each stored shape against the model's."""
    differing = [name for name in expected if found[name].shape != expected[name].shape]
    if differing:
        shown = "; ".join(
            f"{name} is {found[name].shape} there and {expected[name].shape} here ({_flags(name)})"
            for name in differing[:SHAPES_SHOWN]
        )
        more = f"; and {len(differing) - SHAPES_SHOWN} more" if len(differing) > SHAPES_SHOWN else ""
        raise ValueError(f"the weights at {directory} are of a model of another size: {shown}{more}")


def _flags(name: str) -> str:
    return next((flags for start, flags in SHAPE_FLAGS if name.startswith(start)), "--model.*")


def _log_rules(item: _Item, names: Iterable[str], level: int) -> None:
    """Logs how many of the arrays that are read each rule matched."""
    names = list(names)
    counts = [(rule, sum(rule.apply(name) is not None for name in names)) for rule in openpi_rules.TO_OPENPI]
    lines = "".join(f"\n  {count} x {rule.target} -> {rule.source}" for rule, count in counts)
    logger.log(level, "weights: %d arrays of %s, each by one rule:%s", len(names), item.directory, lines)
