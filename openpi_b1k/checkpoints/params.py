"""Reads the parameters of a model from weights of any kind, straight into shards, and accounts for each of them."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from openpi_b1k.checkpoints import openpi_lora, openpi_rules
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.checkpoints.weights import WeightsKind, open_weights, require_model
from openpi_b1k.checkpoints.weights_report import Report
from openpi_b1k.typing import Params, PyTree

logger = logging.getLogger(__name__)


def load_params(
    address: str | pathlib.Path,
    abstract: Params,
    shardings: PyTree,
    *,
    kind: WeightsKind = "ema",
    draw: Callable[[list[str]], Params] | None = None,
    lora_scale: float = openpi_lora.PUBLISHED_SCALE,
    log_level: int = logging.INFO,
) -> Params:
    """Returns the parameters stored at `address`, each read straight into its shards.

    Beside the shards, a host holds about as much as the largest parameter takes as stored.

    Args:
        address: of weights, as for `weights.open_weights`.
        abstract: the parameters to read, ShapeDtypeStructs under our names. Arrays are cast to their dtypes.
        shardings: a sharding for each.
        kind: `ema` reads the weights to act with, the moving average where the run kept one; `live` the others.
        draw: returns random parameters of the named groups, placed like the others. It is called for groups that
            openpi's models do not have, where the stored model has none of them either; None: that is refused.
        lora_scale: alpha / rank of adapters in openpi's layout.
        log_level: of the table of what was loaded, initialised and skipped.

    Raises:
        FileNotFoundError: there are no weights at `address`.
        ValueError: the stored parameters are not the model's, the message names the nearest, or one has another shape
            or a type that is not supported.
    """
    weights = open_weights(address, kind, like=abstract, lora_scale=lora_scale)
    absent = [] if draw is None else _absent_groups(weights.leaves, abstract)
    wanted = {group: child for group, child in abstract.items() if group not in absent}
    require_model(weights, wanted)

    expected, places = flatten(wanted), flatten({group: shardings[group] for group in wanted})
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name]) for name, leaf in expected.items()
    }
    drawn = tuple(flatten({group: abstract[group] for group in absent}))
    report = Report(weights.where, len(expected), tuple(weights.matches(expected)), drawn, weights.skipped)
    logger.log(log_level, "%s", report)
    read = weights.read_into(placed)
    params = unflatten({name: read[name] for name in expected})
    if draw is None or not absent:
        return params
    logger.warning("not in %s, so they start from random numbers: %s", weights.where, ", ".join(absent))
    return params | draw(absent)


def _absent_groups(found: Mapping[str, Any], abstract: Params) -> list[str]:  # Any: abstract arrays
    """Returns the groups that openpi does not have and of which the stored model holds no parameter."""
    return [
        group
        for group in openpi_rules.OURS_ALONE
        if group in abstract and not any(name.startswith(f"{group}/") for name in found)
    ]
