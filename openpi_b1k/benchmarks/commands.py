"""The benchmarks as `scripts/benchmark.py` offers them: each a command line and the rows it gives."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Annotated

import tyro

from openpi_b1k.benchmarks import opening, statistics, videos
from openpi_b1k.benchmarks.settings import Settings


@dataclasses.dataclass(frozen=True)
class Loader:
    """Samples per second and core, ratio to the decoder's limit, distinct episodes per batch, memory of the workers."""

    kinds: tuple[str, ...] = tuple(videos.KINDS)
    """Of data; each is made on first use."""
    json: pathlib.Path | None = None
    """Where the rows are written, too."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Settings)

    def rows(self) -> list[dict]:
        """Returns a row per kind of data."""
        from openpi_b1k.benchmarks import loader  # noqa: PLC0415  # imports jax; --help answers at once

        return [dataclasses.asdict(loader.measure(videos.kind_named(name), self.settings)) for name in self.kinds]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Time and memory of opening 20,000 episodes with 211 million frames, in a process of its own."""

    json: pathlib.Path | None = None
    """Where the row is written, too."""

    def rows(self) -> list[dict]:
        """Returns one row."""
        with tempfile.TemporaryDirectory() as folder:
            opening.write_release(pathlib.Path(folder))
            return [dataclasses.asdict(opening.measure(pathlib.Path(folder)))]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Frames per second from parquet to the column cache, and from there to statistics, absolute and of deltas."""

    json: pathlib.Path | None = None
    """Where the row is written, too."""
    frames: int = 10_000_000
    """Made for it and removed: about 6 GB at 10 million."""

    def rows(self) -> list[dict]:
        """Returns one row."""
        return [dataclasses.asdict(statistics.measure(self.frames))]


Command = Loader | Metadata | Statistics


def write(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes rows as JSON; the directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")


def table(rows: list[dict]) -> str:
    """Returns rows as text, a column each."""
    lines = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        shown = [f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value}" for value in values]
        lines.append(f"{name:26}" + "".join(f"{value:>16}" for value in shown))
    return "\n".join(lines)
