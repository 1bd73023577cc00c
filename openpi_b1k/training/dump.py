"""What is left on disk of an update that was no number, so that its cause can be looked for."""

import json
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.observation import Batch
from openpi_b1k.sharding import own_rows
from openpi_b1k.training.window import nonfinite_groups
from openpi_b1k.typing import Array

EXTREME = 20.0
"""Normalised states and actions lie mostly in [-1, 1], so that beyond this a unit or a statistic is wrong."""
MAX_FINDINGS = 20

Finding = dict[str, str | int | float | list]


def dump(
    run: pathlib.Path, step: int, batch: Batch, metrics: Mapping[str, Array | np.ndarray], config: TrainConfig
) -> pathlib.Path:
    """Writes `<run>/nonfinite-<step>/` and returns it.

    `batch.npz` has the arrays by name (observation.state ...), and `report.json` the step, its loss, the norms, the
    groups whose gradients are no numbers, the seed, and which rows of the batch are not finite or extreme.
    Of several processes each writes the rows it holds, to `batch-<process>.npz` and `report-<process>.json` but for
    process 0; `row` counts within that file.
    """
    directory = run / f"nonfinite-{step}"
    directory.mkdir(parents=True, exist_ok=True)
    suffix = f"-{jax.process_index()}" if jax.process_index() else ""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): own_rows(array) for path, array in leaves}
    np.savez(directory / f"batch{suffix}.npz", **arrays)  # type: ignore[arg-type]  # none is called allow_pickle
    values = {name: np.asarray(value) for name, value in metrics.items()}
    report = {
        "step": step,
        "metrics": {name: _plain(value) for name, value in values.items()},
        "groups": nonfinite_groups(values),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "findings": suspicious(arrays),
    }
    (directory / f"report{suffix}.json").write_text(json.dumps(report, indent=2) + "\n")
    return directory


def suspicious(arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """Returns the rows of the floating-point arrays that are not finite, then those with a value beyond EXTREME.

    One finding a row, at most MAX_FINDINGS: its `array`, the `row`, how many entries (`count`) are `kind` "not finite"
    or "extreme", the index (`entry`) of the first of them or of the largest, and its `value`, as text if not finite.
    """
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)}
    findings = []
    for name, array in floats.items():
        is_bad = ~np.isfinite(array)
        findings += [_finding(name, array, row, is_bad, "not finite") for row in _rows(is_bad)]
    for name, array in floats.items():
        size = np.where(np.isfinite(array), np.abs(array), 0)
        rows = _rows(size > EXTREME)
        findings += [_finding(name, array, row, size * (size > EXTREME), "extreme") for row in rows]
    return findings[:MAX_FINDINGS]


def _rows(is_bad: np.ndarray) -> list[int]:
    return np.unique(np.nonzero(is_bad)[0]).tolist()


def _finding(name: str, array: np.ndarray, row: int, badness: np.ndarray, kind: str) -> Finding:
    """Returns what is wrong with a row; of its entries the one of greatest badness stands for all above 0."""
    entry = np.unravel_index(np.argmax(badness[row]), badness[row].shape)
    return {
        "array": name,
        "row": row,
        "count": int(np.count_nonzero(badness[row])),
        "entry": [int(i) for i in entry],
        "value": _plain(array[row][entry]),
        "kind": kind,
    }


def _plain(value: np.ndarray) -> float | str | list:
    """Returns an array as nested lists of numbers, with text for those that are not finite."""
    if value.ndim:
        return [_plain(one) for one in value]
    number = float(value)
    return number if math.isfinite(number) else str(number)
