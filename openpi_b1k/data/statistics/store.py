"""Where statistics are kept, under a name made of all that changes them, and the parts that shards leave there."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import socket
from collections.abc import Sequence

from openpi_b1k import paths
from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.shards import Shard
from openpi_b1k.data.statistics.summary import Summary

VERSION = 3
"""Part of the name: raise it when the same data would give other numbers."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the statistics of one data set, or of a mixture of several, are kept."""

    name: str

    @property
    def directory(self) -> pathlib.Path:
        """The directory of all statistics."""
        return paths.cache_dir() / "norm_stats"

    @property
    def json(self) -> pathlib.Path:
        """The statistics, in openpi's form."""
        return self.directory / f"{self.name}.json"

    @property
    def summary(self) -> pathlib.Path:
        """What they were computed from, which mixtures need."""
        return self.directory / f"{self.name}.npz"

    def part(self, shard: Shard) -> pathlib.Path:
        """A shard's part of the summary."""
        return self.directory / f"{self.name}.part-{shard.number}-of-{shard.count}.npz"

    def merged(self) -> Summary:
        """Returns the merged parts of a complete set of shards.

        Raises:
            FileNotFoundError: there is none; names the shards that are missing.
        """
        found: dict[int, set[int]] = {}
        for path in self.directory.glob(f"{self.name}.part-*.npz"):
            numbers = re.search(r"\.part-(\d+)-of-(\d+)\.npz$", path.name)
            if numbers:
                found.setdefault(int(numbers[2]), set()).add(int(numbers[1]))
        complete = [total for total, numbers in found.items() if len(numbers) == total]
        if not complete:
            missing = [f"{i}/{total}" for total, numbers in found.items() for i in range(total) if i not in numbers]
            raise FileNotFoundError(
                f"the parts of these statistics in {self.directory} are not complete; run with the same flags and "
                f"--shard {', '.join(missing) if missing else '0/N to (N-1)/N'}"
            )
        summaries = [Summary.load(self.part(Shard(i, min(complete)))) for i in range(min(complete))]
        for other in summaries[1:]:
            summaries[0].merge(other)
        return summaries[0]


def place(index: EpisodeIndex, transforms: TransformConfig, action_horizon: int) -> Place:
    """Returns where the statistics of these data under these transforms are kept; no other setting changes them."""
    key = {
        "version": VERSION,
        "fingerprint": index.fingerprint,
        "state_layout": transforms.state_layout,
        "delta_fields": sorted(transforms.delta_fields),
        "action_horizon": action_horizon,
        "per_step_norm": transforms.per_step_norm,
    }
    return _named(key)


def mixture_place(places: Sequence[Place], weights: Sequence[float]) -> Place:
    """Returns where the pooled statistics of several data sets are kept."""
    parts = [[part.name, weight / sum(weights)] for part, weight in zip(places, weights, strict=True)]
    return _named({"version": VERSION, "parts": parts})


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _named(key: dict[str, object]) -> Place:
    return Place(hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32])
