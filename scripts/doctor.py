"""Says why a policy does not work: `uv run scripts/doctor.py --checkpoint DIR --data.root DIR`. See docs/doctor.md.

Exits with 0 where nothing is found, 1 with findings, 2 where nothing could be examined.
"""

import dataclasses
import pathlib
import sys
from typing import Literal

import tyro

from openpi_b1k.evaluation.open_loop.choice import DataChoice


@dataclasses.dataclass(frozen=True)
class Args:
    """What is examined, and on how much data."""

    checkpoint: pathlib.Path
    """A checkpoint directory, <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>."""
    data: DataChoice = dataclasses.field(default_factory=lambda: DataChoice(split="training"))
    frames: int = 64
    """Frames that are replayed, spread evenly over the episodes."""
    batch_size: int = 16
    """Frames at a time; one size is compiled."""
    seed: int = 0
    """Of the noise."""
    weights_kind: Literal["ema", "live"] = "ema"
    """The weights the checkpoint acts with, its moving average where it has one, or the live ones."""
    json: pathlib.Path | None = None
    """Where to write the report."""


def run(args: Args) -> int:
    """Prints the report and returns the exit status."""
    from openpi_b1k.evaluation.doctor.examine import examine  # noqa: PLC0415  # --help answers at once
    from openpi_b1k.evaluation.doctor.loading import Loading  # noqa: PLC0415

    try:
        load = Loading(args.seed, args.weights_kind, args.batch_size)
        report = examine(args.checkpoint, args.data, args.frames, load)
        if args.json:
            args.json.write_text(report.to_json())
    except (ValueError, KeyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.text())
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
