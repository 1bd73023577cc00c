"""Re-encodes data at the model's size: `uv run scripts/prepare_dataset.py SOURCE --target DIR`; see docs/data.md."""

import dataclasses
import logging
import os
import pathlib
import sys
from typing import Annotated

import tyro

from openpi_b1k.config.data import CAMERAS, Modality
from openpi_b1k.curation.recode import Settings


@dataclasses.dataclass(frozen=True)
class Args:
    """What is prepared, where, and how."""

    source: Annotated[pathlib.Path, tyro.conf.Positional]
    """The data set: holds meta/, data/ and videos/."""
    target: pathlib.Path
    """Where the new one goes."""
    tasks: tuple[str, ...] = ()
    """Names; none means all, which must then be there."""
    cameras: tuple[str, ...] = CAMERAS
    modalities: tuple[Modality, ...] = ("rgb", "depth", "segmentation")
    shard: str = "0/1"
    """Part I/N of the files, I from 0."""
    workers: int = len(os.sched_getaffinity(0))
    dry_run: bool = False
    settings: Annotated[Settings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Settings)


def run(args: Args) -> int:
    """Prepares the data set and returns the exit status: 1 if a video could not be written, 2 if nothing was done."""
    from openpi_b1k.curation import prepare  # noqa: PLC0415  # so that --help answers at once
    from openpi_b1k.data.shards import parse_shard  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        shard = parse_shard(args.shard)
        work = prepare.plan(args.source, args.target, args.settings, args.tasks, args.cameras, args.modalities)
        print(expected := prepare.estimate(work))
        if args.dry_run:
            return 0
        prepare.check_space(work, expected)
        report = prepare.run(work, shard, args.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(prepare.summary(report))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
