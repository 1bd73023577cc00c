"""Makes rollouts a training set: `uv run scripts/import_rollouts.py --input DIR --output DIR`, docs/rollouts.md."""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from openpi_b1k.curation.rollouts.gather import Settings


@dataclasses.dataclass(frozen=True)
class Args:
    """Which rollouts, where their data set goes, and in which layout."""

    input: tuple[pathlib.Path, ...]
    """Searched to any depth for what `evaluate.py closed-loop --record` or openpi-comet's evaluation wrote."""
    output: pathlib.Path
    """Root of the new data set; must not be there."""
    layout: Literal["rft", "lerobot"] = "rft"
    """openpi-comet's RFT layout (LeRobot v2.1), or LeRobot v3.0 by lerobot's own writer (`--extra lerobot`)."""
    tasks_of: pathlib.Path | None = None
    """Root of the demonstrations, whose task list gives numbers and prompts; needed for openpi-comet's rollouts."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that copy and encode videos."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Settings)


def run(args: Args) -> int:
    """Imports the rollouts and returns the exit status: 2 if nothing was written."""
    from openpi_b1k.curation.rollouts import importing  # noqa: PLC0415  # so that --help answers at once

    try:
        report = importing.import_rollouts(
            args.input, args.output, args.settings, args.layout, args.tasks_of, args.workers
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.text)
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
