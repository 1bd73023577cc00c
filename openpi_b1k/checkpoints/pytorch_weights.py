"""Weights in `model.safetensors`: of openpi's PyTorch models, of RLinf, of LeRobot's copy of them, and our exports.

RLinf uses openpi's keys. LeRobot puts `model.` before each, and has the table of embeddings under two keys.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from openpi_b1k.checkpoints import openpi_rules, pytorch_rules, safetensors
from openpi_b1k.checkpoints.host_arrays import place, require_types
from openpi_b1k.checkpoints.rules import nearest
from openpi_b1k.checkpoints.tensor_rule import LAYER, TensorRule
from openpi_b1k.checkpoints.weights_report import Match

WRAPPED = "model."
"""What LeRobot's policies put before each key."""
EMBEDDING = "vlm/embedder/embedding"
EMBED_TOKENS = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
"""Transformers' other key of the table of embeddings."""
ROWS_COMPARED = 4096  # at once, so that two tables are never in memory
SHOWN = 4


@dataclasses.dataclass(frozen=True)
class PytorchWeights:
    """The weights of one file, or of several that an index lists."""

    where: str
    file: safetensors.File
    keys: Mapping[str, str]
    """openpi's key -> the file's."""
    leaves: dict[str, jax.ShapeDtypeStruct]
    """Our name -> abstract value as `read` returns it."""
    skipped: dict[str, str]
    """The file's keys that are no parameter -> the reason."""

    @property
    def model_kind(self) -> openpi_rules.Kind | None:
        """pi05 or pi0; None if it does not show."""
        return openpi_rules.kind_of(self.leaves)

    def matches(self, names: Iterable[str]) -> list[Match]:
        """Returns the rules of these leaves, and of how many tensors each is put together."""
        found = []
        for name in names:
            rule = pytorch_rules.rule_of(name)
            pieces = rule.pieces(self.leaves[name].shape)
            found.append(Match(len(pieces), " and ".join(rule.theirs), name))
        return found

    def read(self, name: str) -> np.ndarray:
        """Returns one leaf in this process's memory, in the type it is stored in.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self.leaves:
            raise KeyError(f"{self.where} has no parameter {name!r}")
        return pytorch_rules.from_pytorch(name, lambda key: self.file.read(self.keys[key]), self.leaves[name].shape)

    def read_into(self, placed: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns leaves read into the shards that `placed`, {our name: abstract value}, gives them, one by one."""
        return {name: place(self.read(name), leaf) for name, leaf in placed.items()}


def open_pytorch(path: pathlib.Path, like: Mapping[str, tuple[int, ...]]) -> PytorchWeights:
    """Returns the weights of a file, or of a directory with one, reading none.

    Args:
        path: the file or the directory.
        like: our name -> shape of the model that is expected. Tensors do not show how many heads there are, so that is
            taken from here; sizes may differ.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds tensors that are not of pi0 or pi0.5, lacks some of them, or has them in
            types that are not supported; the message names the nearest.
    """
    file = safetensors.open_file(path)
    keys, skipped = _openpi_keys(file)
    require_types({keys[key]: file.tensors[keys[key]][0] for key in keys}, str(file.path))
    pieces = {key: _find(key, str(file.path)) for key in keys}
    depths: dict[str, int] = {}
    for rule, layer in pieces.values():
        root = rule.ours.split("/")[0]
        depths[root] = max(depths.get(root, 0), layer + 1)
    leaves, missing = {}, []
    for rule in {rule.ours: rule for rule, _ in pieces.values()}.values():
        depth = (depths[rule.ours.split("/")[0]],) if rule.is_stacked else ()
        wanted = [key for key, _ in rule.pieces(depth)]
        missing += [key for key in wanted if key not in keys]
        known = next(key for key in wanted if key in keys)
        leaves[rule.ours] = _leaf(rule, depth, file.tensors[keys[known]], like)
    if missing:
        named = "; ".join(f"{key!r} (nearest: {nearest(key, keys)})" for key in sorted(missing)[:SHOWN])
        raise ValueError(f"{file.path} lacks {len(missing)} tensors: {named}")
    return PytorchWeights(str(file.path), file, keys, dict(sorted(leaves.items())), skipped)


def _leaf(
    rule: TensorRule, depth: tuple[int, ...], stored: safetensors.Entry, like: Mapping[str, tuple[int, ...]]
) -> jax.ShapeDtypeStruct:
    """Returns the abstract value of a leaf, of which one tensor is given."""
    dtype, shape = stored
    fused = (len(rule.theirs),) if rule.is_fused else ()
    folds = "(" in rule.axes
    if folds and rule.ours not in like:
        raise ValueError(
            f"how many heads {rule.ours} has is not stored in a safetensors file; give the model's shapes (`like`)"
        )
    ours = rule.axes.split(" -> ")[0]
    part = rule.part_shape(like[rule.ours]) if folds else (1,) * len(ours)
    return jax.ShapeDtypeStruct((*depth, *fused, *rule.part_of(shape, part)), dtype)


def _openpi_keys(file: safetensors.File) -> tuple[dict[str, str], dict[str, str]]:
    """Returns openpi's key -> the file's of all parameters, and the file's other keys -> why they are none."""
    prefix = WRAPPED if all(key.startswith(WRAPPED) for key in file.tensors) else ""
    keys = {key.removeprefix(prefix): key for key in file.tensors}
    skipped = {}
    if pytorch_rules.FILLED_WITH_ZEROS in keys:
        skipped[keys.pop(pytorch_rules.FILLED_WITH_ZEROS)] = "openpi's models never use it"
    (head,) = pytorch_rules.rule_of(EMBEDDING).theirs
    if EMBED_TOKENS in keys:
        embed_tokens = keys.pop(EMBED_TOKENS)
        if head not in keys:
            keys[head] = embed_tokens
        elif not _are_equal(file, keys[head], embed_tokens):
            raise ValueError(
                f"{file.path} has two tables of embeddings that differ, {keys[head]} and {embed_tokens}; pi0 and pi0.5 "
                "have one, which both keys hold"
            )
        else:
            skipped[embed_tokens] = f"equal to {keys[head]}"
    return keys, skipped


def _are_equal(file: safetensors.File, first: str, second: str) -> bool:
    if file.tensors[first] != file.tensors[second]:
        return False
    one, other = file.read(first), file.read(second)
    return all(
        np.array_equal(one[row : row + ROWS_COMPARED], other[row : row + ROWS_COMPARED])
        for row in range(0, len(one), ROWS_COMPARED)
    )


@functools.cache
def _templates() -> dict[str, TensorRule]:
    """Returns {key with `{i}` for the layer: rule} of both kinds of model."""
    found: dict[str, TensorRule] = {}
    for kind in openpi_rules.RECIPES:
        for rule in pytorch_rules.rules(kind, point_clouds=True).values():
            for key in rule.theirs:
                if found.setdefault(key, rule).ours != rule.ours:
                    raise ValueError(f"{key} is of two leaves: {found[key].ours} and {rule.ours}")
    return found


def _find(key: str, where: str) -> tuple[TensorRule, int]:
    """Returns the one rule of a key, and its layer; 0 where it is of none."""
    layer = re.search(r"(?<=\.layers\.)\d+(?=\.)", key)
    template = key if layer is None else f"{key[: layer.start()]}{LAYER}{key[layer.end() :]}"
    if template not in _templates():
        raise ValueError(f"{where}: no rule for {key!r}; nearest: {nearest(template, _templates())}")
    return _templates()[template], 0 if layer is None else int(layer[0])
