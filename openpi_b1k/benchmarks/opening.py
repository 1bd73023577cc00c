"""What opening a data set costs in time and memory: its meta files, by default as many as the 2026 release has."""

import dataclasses
import json
import pathlib
import subprocess
import sys

from openpi_b1k.benchmarks.metadata import TEMPLATES, Episodes, release_episodes, write_meta

MEASURED = """
import json, pathlib, re, sys, time
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.index import formats, selection
began = time.perf_counter()
source = DataConfig(generation="2026")
training, validation = selection.split(formats.open_index(pathlib.Path(sys.argv[1]), source), source)
training.fingerprint, validation.fingerprint
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "peak_bytes": int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024,
    "episodes": len(training.numbers) + len(validation.numbers),
    "frames": len(training) + len(validation),
}))
"""
"""Run in a process of its own: memory once used by others would count otherwise, as it does in getrusage's maximum."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """What opening cost."""

    seconds: float
    """From the first meta file to both splits and their fingerprints, imports left out."""
    peak_bytes: int
    """Most memory the process held, imports included."""
    episodes: int
    frames: int


def write_release(root: pathlib.Path, episodes: Episodes | None = None) -> None:
    """Writes meta files as the 2026 release's, and an empty file wherever the reader looks whether files are there."""
    episodes = episodes or release_episodes()
    tasks = int(episodes.tasks.max()) + 1
    write_meta(
        root, episodes, [f"task_{i}" for i in range(tasks)], [f"Do what task {i} asks for." for i in range(tasks)]
    )
    for task in range(tasks):
        where = {"chunk_index": task, "file_index": 0}
        names = [TEMPLATES["data_path"].format(**where)]
        names += [TEMPLATES["video_path"].format(video_key=key, **where) for key in episodes.videos]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()


def measure(root: pathlib.Path) -> Opening:
    """Returns what opening the data set at `root` costs a fresh process.

    Raises:
        ValueError: it cannot be opened.
    """
    result = subprocess.run([sys.executable, "-c", MEASURED, str(root)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"cannot open {root}: {result.stderr.strip().splitlines()[-1]}")
    return Opening(**json.loads(result.stdout.splitlines()[-1]))
