"""How fast statistics are computed: from parquet, and from the column cache that the first reading leaves behind."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k import paths
from openpi_b1k.benchmarks import metadata, opening
from openpi_b1k.lerobot_format import vectors
from openpi_b1k.robots.r1pro import ACTION, PROPRIO_2026

ACTION_HORIZON = 32
DELTA_FIELDS = "torso left_arm right_arm"
MEASURED = """
import dataclasses, json, pathlib, resource, sys, time
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.statistics.compute import summarise
from openpi_b1k.robots.r1pro import r1pro

source, horizon = DataConfig(generation="2026"), int(sys.argv[2])
absolute = source.transforms
delta = dataclasses.replace(absolute, delta_fields=tuple(sys.argv[3].split()))
robot = r1pro(absolute.state_layout)
index = open_index(pathlib.Path(sys.argv[1]), source)
times = [time.perf_counter()]
for make in (
    lambda: Columns(index, robot).ensure(),
    lambda: summarise(index, robot, absolute, horizon).result(),
    lambda: summarise(index, robot, delta, horizon).result(),
):
    make()
    times.append(time.perf_counter())
conversion, *cached = (after - before for before, after in zip(times, times[1:]))
frames = len(index)
print(json.dumps({
    "frames": frames,
    "conversion_per_s": round(frames / conversion),
    "cached_absolute_per_s": round(frames / cached[0]),
    "cached_delta_per_s": round(frames / cached[1]),
    "parquet_absolute_per_s": round(frames / (conversion + cached[0])),
    "parquet_delta_per_s": round(frames / (conversion + cached[1])),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
"""Run in a process of its own, with a cache of its own: nothing may have been converted before."""


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Frames per second on all cores; files that were just written are still in memory."""

    frames: int
    conversion_per_s: int
    """From parquet to the column cache."""
    cached_absolute_per_s: int
    """From the column cache to statistics of absolute actions."""
    cached_delta_per_s: int
    """The same, of DELTA_FIELDS relative to the state."""
    parquet_absolute_per_s: int
    """Conversion and statistics: what a first start takes."""
    parquet_delta_per_s: int
    peak_bytes: int
    """Most memory the process held, mapped files included."""


def write_columns(root: pathlib.Path, frames: int) -> None:
    """Writes about so many frames of the 2026 release's episodes and parquet files; its videos are empty files.

    Raises:
        ValueError: they would not make an episode of the release's usual length.
    """
    usual = metadata.RELEASE_FRAMES // metadata.RELEASE_EPISODES
    if frames < usual:
        raise ValueError(f"frames must be at least an episode's, {usual}; got {frames}")
    count = frames // usual
    episodes = metadata.release_episodes(count, frames, -(-count * metadata.RELEASE_TASKS // metadata.RELEASE_EPISODES))
    opening.write_release(root, episodes)
    # Random walks, which no encoding makes small; each file has another part of the same ones.
    longest = metadata.ROWS_PER_FILE + metadata.RELEASE_LENGTHS[1]
    steps = np.random.default_rng(0).standard_normal((2 * longest, PROPRIO_2026.size + ACTION.size), np.float32)
    walks = np.sin(np.cumsum(steps * 0.02, axis=0))
    places = np.unique(np.stack([episodes.tasks, episodes.data.files], axis=1), axis=0)
    for i, (task, file) in enumerate(places.tolist()):
        rows = np.flatnonzero((episodes.tasks == task) & (episodes.data.files == file))
        numbers = np.repeat(rows, episodes.lengths[rows])
        part = walks[i * 997 % longest :][: len(numbers)]
        columns = {"episode_index": pa.array(numbers)}
        for name, values in zip(("observation.state", "action"), np.split(part, [PROPRIO_2026.size], 1), strict=True):
            columns[name] = vectors(values)
        path = root / metadata.TEMPLATES["data_path"].format(chunk_index=task, file_index=file)
        pq.write_table(pa.table(columns), path)


def measure(frames: int) -> Speeds:
    """Returns how fast so many frames' columns are converted and summarised; they are made for it, and removed.

    Raises:
        ValueError: they cannot be.
    """
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.cache_dir()) as folder:
        root = pathlib.Path(folder) / "data"
        write_columns(root, frames)
        result = subprocess.run(
            [sys.executable, "-c", MEASURED, str(root), str(ACTION_HORIZON), DELTA_FIELDS],
            env=os.environ | {"OPENPI_B1K_CACHE": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise ValueError(f"cannot summarise generated columns: {result.stderr.strip().splitlines()[-1]}")
    return Speeds(**json.loads(result.stdout.splitlines()[-1]))
