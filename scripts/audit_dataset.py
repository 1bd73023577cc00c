"""Tells whether a data set is whole and right: `uv run scripts/audit_dataset.py ROOT --json F --html F`.

Exits with 1 where training would be wrong, 2 where nothing could be audited. See docs/data.md, also for --merge.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Args:
    """What is audited, how closely, and where the result goes."""

    root: Annotated[pathlib.Path | None, tyro.conf.Positional] = None
    """The data set: holds meta/, data/ and videos/."""
    tasks: tuple[str, ...] = ()
    """Names; none means all that are there."""
    videos: Literal["none", "ends", "all"] = "ends"
    """Which frames are decoded: none, the first and last of each file, or every one."""
    json: pathlib.Path | None = None
    html: pathlib.Path | None = None
    shard: str = "0/1"
    """Part I/N of the files, I from 0; needs --json."""
    merge: tuple[pathlib.Path, ...] = ()
    """JSON files of all shards: reported as one, without reading the data set."""
    workers: int = len(os.sched_getaffinity(0))


def run(args: Args) -> int:
    """Prints the table and returns the exit status."""
    from openpi_b1k.curation import audit, audit_page, findings  # noqa: PLC0415  # --help answers at once
    from openpi_b1k.data.shards import parse_shard  # noqa: PLC0415

    try:
        shard = parse_shard(args.shard)
        if (args.root is None) == (not args.merge) or (shard.count > 1 and args.json is None):
            raise ValueError("give ROOT (with --shard also --json), or --merge with the JSON files of all shards")
        parts = [audit.from_json(path.read_text(encoding="utf-8")) for path in args.merge]
        if args.root is not None:
            parts = [audit.run(args.root, args.tasks, args.videos, shard, args.workers)]
        report = parts[0] if shard.count > 1 else audit.merge(parts)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    if args.html:
        args.html.write_text(audit_page.page(report), encoding="utf-8")
    print(findings.table(report.findings))
    return 1 if findings.has_errors(report.findings) else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
