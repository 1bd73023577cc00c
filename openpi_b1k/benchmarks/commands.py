"""The benchmarks as `scripts/benchmark.py` offers them: each a command line and the rows it gives."""

import dataclasses
import json
import math
import pathlib
import tempfile
from typing import Annotated

import tyro

from openpi_b1k.benchmarks import opening, statistics, videos
from openpi_b1k.benchmarks.settings import Settings
from openpi_b1k.benchmarks.training_settings import TrainingSettings


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


@dataclasses.dataclass(frozen=True)
class Policy:
    """Time of a reply, from its request's last byte on, over loopback with images at full size, beside the resizes."""

    checkpoint: pathlib.Path | None = None
    """Whose model is timed, too; default: a network that answers at once."""
    num_envs: tuple[int, ...] = (1, 16)
    """Environments of a connection; a row each."""
    chunks: int = 100
    """New chunks to time for each."""
    channels: int = 4
    """Of the images sent: 4 as the simulator renders them, or 3."""
    soak_minutes: float = 0.0
    """Instead: send 30 requests per second for so long, check each reply, and watch memory."""
    json: pathlib.Path | None = None
    """Where the rows are written, too."""

    def rows(self) -> list[dict]:
        """Returns a row per number of environments, or the one of the soak."""
        from openpi_b1k.benchmarks import policy, soak  # noqa: PLC0415  # imports jax; --help answers at once

        if self.soak_minutes > 0:
            if self.checkpoint is not None:
                raise ValueError("a soak checks replies by what the null network answers: leave --checkpoint out")
            return [dataclasses.asdict(soak.measure(60 * self.soak_minutes))]
        subject = policy.null_subject() if self.checkpoint is None else policy.checkpoint_subject(self.checkpoint)
        return [dataclasses.asdict(row) for row in policy.measure(subject, self.num_envs, self.chunks, self.channels)]


@dataclasses.dataclass(frozen=True)
class Train:
    """Time, samples per second and memory of loss, gradients and whole updates, with random weights."""

    json: pathlib.Path | None = None
    """Where the rows are written, too."""
    compare: pathlib.Path | None = None
    """Rows kept by --json before: adds how many times as fast these are."""
    settings: Annotated[TrainingSettings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainingSettings)

    def rows(self) -> list[dict]:
        """Returns a row per program.

        Raises:
            ValueError: `compare` holds no such rows, or the model does not fit the devices.
        """
        before = {} if self.compare is None else medians(self.compare)
        from openpi_b1k.benchmarks import training  # noqa: PLC0415  # imports jax; --help answers at once

        rows = [dataclasses.asdict(row) for row in training.measure(self.settings)]
        if before:
            rows = [row | {"speedup": before.get(row["name"], math.nan) / row["median_s"]} for row in rows]
        return rows


Command = Loader | Metadata | Statistics | Policy | Train


def medians(path: pathlib.Path) -> dict[str, float]:
    """Returns {name: median seconds} of the rows that --json kept.

    Raises:
        ValueError: the file holds no such rows.
    """
    try:
        return {row["name"]: float(row["median_s"]) for row in json.loads(path.read_text())}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold rows of benchmark.py train --json: {error!r}") from error


def write(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes rows as JSON; the directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")


def table(rows: list[dict]) -> str:
    """Returns rows as a Markdown table, a column each."""
    lines = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        shown = [f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value}" for value in values]
        lines.append(f"| {name:26} |" + "".join(f"{value:>16} |" for value in shown))
        if len(lines) == 1:
            lines.append("| --- |" + " ---: |" * len(rows))
    return "\n".join(lines)
