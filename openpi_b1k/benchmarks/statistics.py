"""How fast statistics are computed: from parquet, and from the column cache that the first reading leaves behind."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from openpi_b1k import paths
from openpi_b1k.config.data import Generation

MEASURED = """
import json, pathlib, resource, sys, time
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.statistics.compute import summarise
from openpi_b1k.robots.r1pro import r1pro

if __name__ == "__main__":
    source = DataConfig(generation=sys.argv[2])
    robot = r1pro(source.transforms.state_layout)
    index = open_index(pathlib.Path(sys.argv[1]), source)
    times = [time.perf_counter()]
    for make in (
        lambda: Columns(index, robot).ensure(), lambda: summarise(index, robot, source.transforms, int(sys.argv[3]))
    ):
        make()
        times.append(time.perf_counter())
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "frames": len(index),
        "conversion_frames_per_s": len(index) / (times[1] - times[0]),
        "cached_frames_per_s": len(index) / (times[2] - times[1]),
        "parquet_frames_per_s": len(index) / (times[2] - times[0]),
        "peak_bytes": max(usage) * 1024,
    }))
"""
"""Run in a process of its own, with a cache of its own: nothing may have been converted before."""


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Frames per second on all cores."""

    frames: int
    conversion_frames_per_s: float
    """From parquet to the column cache."""
    cached_frames_per_s: float
    """From the column cache to statistics."""
    parquet_frames_per_s: float
    """Both: what a first start takes."""
    peak_bytes: int
    """Most memory that one process held."""


def measure(root: pathlib.Path, generation: Generation, action_horizon: int = 32) -> Speeds:
    """Returns how fast the columns of the data set at `root` are converted and summarised.

    Raises:
        ValueError: they cannot be.
    """
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.cache_dir()) as cache:
        script = pathlib.Path(cache) / "measured.py"  # a file, because worker processes import it
        script.write_text(MEASURED)
        result = subprocess.run(
            [sys.executable, str(script), str(root), generation, str(action_horizon)],
            env=os.environ | {"OPENPI_B1K_CACHE": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise ValueError(f"cannot summarise {root}: {result.stderr.strip().splitlines()[-1]}")
    return Speeds(**json.loads(result.stdout.splitlines()[-1]))
