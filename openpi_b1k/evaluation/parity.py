"""Stored references of other implementations against ours on the present device: quantity, error, tolerance.

A file is an .npz. One with `meta` holds a model, its inputs and outputs (`parity_model`); one without holds groups of
transforms told apart by their prefix (`parity_transforms`). Groups that need something not built yet are skipped.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

Reference = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The largest error of one quantity."""

    quantity: str
    error: float
    tolerance: float
    measure: str = "absolute"

    @property
    def is_within(self) -> bool:
        """Whether the error is a number within tolerance."""
        return bool(self.error <= self.tolerance)

    def __str__(self) -> str:
        """Returns one line of the table."""
        verdict = "ok" if self.is_within else "BEYOND TOLERANCE"
        return f"  {self.quantity:<32} {self.error:<10.2e} {self.tolerance:<10.0e} {self.measure:<28} {verdict}"


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A quantity that is not compared, and why."""

    quantity: str
    reason: str

    is_within = True

    def __str__(self) -> str:
        """Returns one line of the table."""
        return f"  {self.quantity:<32} skipped: {self.reason}"


Results = list[Comparison | Skipped]


def largest_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest absolute difference; infinity where shapes differ, NaN where either holds one."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs), initial=0.0)) if ours.shape == theirs.shape else float("inf")


def compare_file(path: pathlib.Path) -> Results:
    """Returns every comparison a file asks for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no reference of a known kind.
    """
    # Imported here: both import this module for the types above.
    from openpi_b1k.evaluation import parity_model, parity_transforms  # noqa: PLC0415

    if not path.is_file():
        raise FileNotFoundError(f"no reference at {path}; give .npz files, such as tests/data/pi05_f32.npz")
    try:
        with np.load(path) as stored:
            reference = dict(stored)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not an .npz file: {error}") from error
    results = parity_model.compare(reference) if "meta" in reference else parity_transforms.compare(reference)
    if not results:
        known = ", ".join(parity_transforms.GROUPS)
        raise ValueError(f"{path} holds neither `meta`, as a model does, nor a group of transforms: {known}")
    return results


def report(paths: Sequence[pathlib.Path]) -> tuple[str, bool]:
    """Returns a table of all comparisons in the files, and whether all are within tolerance."""
    lines, is_within = [f"  {'quantity':<32} {'error':<10} {'tolerance':<10} measure"], True
    for path in paths:
        results = compare_file(path)
        lines += [str(path), *map(str, results)]
        is_within &= all(result.is_within for result in results)
    return "\n".join(lines), is_within
