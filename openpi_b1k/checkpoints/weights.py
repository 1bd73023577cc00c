"""Weights of every kind behind one interface and under our names, read leaf by leaf or straight into shards.

A checkpoint's directory or its `params/`: openpi's, comet's and ours (Orbax), dense or with openpi's adapters, which
are merged. `model.safetensors`: openpi's PyTorch models, RLinf's, LeRobot's, and our exports.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np

from openpi_b1k import paths
from openpi_b1k.checkpoints import openpi_lora, openpi_rules
from openpi_b1k.checkpoints.orbax_weights import METADATA, ROOT, find_params, open_orbax
from openpi_b1k.checkpoints.pytorch_weights import open_pytorch
from openpi_b1k.checkpoints.rules import flatten, require_same_keys
from openpi_b1k.checkpoints.safetensors import FILE, INDEX
from openpi_b1k.checkpoints.weights_report import Match
from openpi_b1k.typing import Params

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


class Weights(Protocol):
    """Stored weights under our names."""

    @property
    def where(self) -> str:
        """Path, for messages."""
        ...

    @property
    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Our name -> shape and type as `read` returns it."""
        ...

    @property
    def skipped(self) -> dict[str, str]:
        """Stored arrays that are no parameter -> the reason."""
        ...

    @property
    def model_kind(self) -> openpi_rules.Kind | None:
        """The kind of model, None if it does not show."""
        ...

    def matches(self, names: Iterable[str]) -> list[Match]:
        """Returns the rules that name these leaves, and of how many stored arrays each does."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Returns one whole leaf in this process's memory."""
        ...

    def read_into(self, placed: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns some leaves in the shards, and cast to the types, that `placed` gives them."""
        ...


def open_weights(
    address: str | pathlib.Path,
    kind: WeightsKind = "ema",
    *,
    like: Params | Mapping[str, Any] | None = None,  # Any: abstract arrays
    lora_scale: float = openpi_lora.PUBLISHED_SCALE,
) -> Weights:
    """Returns the weights at `address`, reading none of them.

    Args:
        address: a checkpoint's directory or its params directory, a directory with `model.safetensors` or such a file;
            a local path or what `paths.fetch` takes.
        kind: `ema` reads the weights to act with, the moving average where the run kept one; `live` the others.
        like: abstract parameters of the model that is expected, nested or not. Needed for `model.safetensors` alone,
            which does not show how many heads there are.
        lora_scale: alpha / rank of adapters in openpi's layout, whose checkpoints do not say. Default: that of the
            configs which openpi publishes. Ours are stored merged.

    Raises:
        FileNotFoundError: there are no weights at `address`.
        ValueError: an array there is no parameter of pi0 or pi0.5, the message names the nearest, or is not of a
            supported type; or the live weights of a safetensors file are asked for.
    """
    path = paths.fetch(str(address))
    if not _is_pytorch(path):
        return open_orbax(path, kind, lora_scale)
    if kind == "live":
        raise ValueError(f"{path} holds one set of weights, those to act with; ask for the kind `ema`, not `live`")
    return open_pytorch(path, {name: tuple(leaf.shape) for name, leaf in flatten(dict(like or {})).items()})


def _is_pytorch(path: pathlib.Path) -> bool:
    """Whether weights lie in safetensors files."""
    if path.is_file():
        return True
    has_pytorch = any((path / name).is_file() for name in (FILE, INDEX))
    if has_pytorch and any((where / METADATA).is_file() for where in (path, path / ROOT)):
        raise ValueError(
            f"{path} has weights twice, as {FILE} and as {find_params(path)}; give the one that is meant, with its name"
        )
    return has_pytorch


def require_model(weights: Weights, abstract: Params) -> None:
    """Checks that stored weights are exactly those of a model.

    Args:
        weights: as `open_weights` returns them.
        abstract: the model's parameters under our names.

    Raises:
        ValueError: they are of the other kind of model, lack parameters or have others, or have other shapes; the
            message has the flags or the recipe that change that.
    """
    expected = flatten(abstract)
    wanted = openpi_rules.kind_of(expected)
    if wanted is not None:
        openpi_rules.require_kind(weights.leaves, wanted, weights.where)
    require_same_keys(weights.leaves, expected, weights.where)
    differing = [name for name in expected if weights.leaves[name].shape != expected[name].shape]
    if differing:
        shown = "; ".join(
            f"{name} is {weights.leaves[name].shape} there and {expected[name].shape} here ({_flags(name)})"
            for name in differing[:SHAPES_SHOWN]
        )
        more = f"; and {len(differing) - SHAPES_SHOWN} more" if len(differing) > SHAPES_SHOWN else ""
        raise ValueError(f"the weights at {weights.where} are of a model of another size: {shown}{more}")


def _flags(name: str) -> str:
    return next((flags for start, flags in SHAPE_FLAGS if name.startswith(start)), "--model.*")
