"""Compares stored results of other implementations with ours on the present device: `uv run scripts/parity.py FILE...`.

Prints the largest error of each quantity; the exit status is 1 if one is beyond tolerance, 2 if a file cannot be read.
"""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Args:
    """Which references to run."""

    files: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Stored references, such as tests/data/*.npz."""


def run(args: Args) -> int:
    """Prints the table and returns the exit status."""
    from openpi_b1k.evaluation import parity  # noqa: PLC0415  # so that --help answers at once

    if not args.files:
        print("error: give at least one reference, such as tests/data/pi05_f32.npz", file=sys.stderr)
        return 2
    try:
        table, is_within = parity.report(args.files)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
