"""Which revision of a published data set a copy is, and the refusal of copies that are known to be wrong.

The 2026 release was corrected twice (challenge updates of 2026-07-27 and 2026-08-24): base velocities became
robot-local, depth videos were fixed and meta/tasks.jsonl was added; then joint velocities were replaced and
meta/stats.json was computed anew. What a copy shows of this, and how sure it is:

- No meta/tasks.jsonl: from before the first correction. Certain; `v30.read_task_table` refuses it.
- huggingface_hub noted when it fetched a file, and that was before the correction. Certain, as far as the clock was
  right. Copies made otherwise have no such notes, and a fresh download of an old commit looks new.
- Joint velocities beyond the bounds in meta/stats.json: rows and statistics are of different revisions. Certain, but
  only seen where an old value happens to lie outside; a copy that is old throughout agrees with itself.
- Base velocities that do not follow the base's commands, which are in the robot's frame: likely to be in the world's
  frame. Seen only if the robot drives in several directions, and not verified on a copy from before the correction, so
  it is a warning and no refusal.

Nothing here can prove that a copy is new: `Revision.commits` is what to compare with the repository's history.
"""

import dataclasses
import datetime as dt
import json
import logging
import pathlib
import re
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.listing import PROPRIO
from openpi_b1k.robots.r1pro import ACTION, PROPRIO_2026, PROPRIO_IN_USE

logger = logging.getLogger(__name__)

CORRECTED = dt.datetime(2026, 8, 24, tzinfo=dt.UTC)
CORRECTED_FIELDS = ("arm_left_qvel", "gripper_left_qvel", "arm_right_qvel", "gripper_right_qvel", "trunk_qvel")
NOTES = ".cache/huggingface/download"
COMMIT = re.compile(r"[0-9a-f]{40}")
CHECKED_FILES = 3
CHECKED_EPISODES = 64
MIN_MOVING_ROWS = 300
MIN_COMMAND = 0.2
"""Of 1: base commands below are too small to tell a direction."""
MIN_SPEED = 0.02
"""m/s"""
MIN_CONCENTRATION = 0.5
"""Of the angles between command and velocity: 1 if all are equal, near 0 if they point anywhere."""


class EpisodeReader(Protocol):
    """Whatever reads an episode's columns."""

    def episode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns proprio in use [n, 25] and actions [n, 23] of an episode."""
        ...


@dataclasses.dataclass(frozen=True)
class Revision:
    """Where a copy came from, as far as it tells."""

    commits: tuple[str, ...]
    """Commits of the repository its meta and data files were fetched from; several if in several goes."""
    fetched: tuple[dt.datetime, dt.datetime] | None
    """First and last time."""

    def __str__(self) -> str:
        """Returns it as one line of a log."""
        commits = ", ".join(self.commits) or "an unknown commit"
        if self.fetched is None:
            return commits
        first, last = (f"{time:%Y-%m-%d}" for time in self.fetched)
        return f"{commits}, fetched {first}" + (f" to {last}" if last != first else "")


def read_revision(index: EpisodeIndex) -> Revision:
    """Returns what huggingface_hub's notes, its cache's path or git tell about the files of an index."""
    commits, times = set(), []
    meta = sorted((index.root / "meta").glob("*.json*"))
    data = [index.data_files[i] for i in np.unique(index.data_ids)] if is_2026_release(index) else []
    for commit, time in _notes(index.root, [*(f"meta/{path.name}" for path in meta), *data]):
        commits.add(commit)
        times.append(time)
    if not commits:
        commits = {commit for commit in (_snapshot(index.root), _git_head(index.root)) if commit}
    return Revision(tuple(sorted(commits)), (min(times), max(times)) if times else None)


def is_2026_release(index: EpisodeIndex) -> bool:
    """Returns whether the data have the names and the state of the 2026 release."""
    named = any(video.key.startswith("observation.rgb.") for video in index.videos)
    return named and index.proprio_size == PROPRIO_2026.size


def refuse_outdated(index: EpisodeIndex, columns: EpisodeReader) -> None:
    """Refuses a copy of the 2026 release that shows to be older than its corrections; see the module's text.

    Raises:
        ValueError: names every sign of it.
    """
    if not is_2026_release(index):
        return
    reasons = []
    revision = read_revision(index)
    if revision.fetched and revision.fetched[0] < CORRECTED:
        reasons.append(f"files of it were fetched on {revision.fetched[0]:%Y-%m-%d}")
    reasons += _outside_statistics(index)
    concentration = base_concentration(index, columns)
    if concentration is not None and concentration < MIN_CONCENTRATION:
        logger.warning(
            "%s may be older than the corrections to the 2026 release: base velocities point anywhere relative to the "
            "base's commands (concentration of the angles %.2f, expected near 1), as if in the world's frame",
            *(index.root, concentration),
        )
    if reasons:
        raise ValueError(
            f"{index.root} is older than the corrections of {CORRECTED:%Y-%m-%d} to the 2026 release: "
            f"{'; '.join(reasons)}. Download meta/ and data/ again with scripts/download_dataset.py; it fetches only "
            "what has changed"
        )


def base_concentration(index: EpisodeIndex, columns: EpisodeReader) -> float | None:
    """Returns how alike the angles between base command and planar base velocity are, in [0, 1].

    1 means that every velocity is turned against its command by the same angle, as in the robot's frame. None: the
    robot drives too little in the episodes looked at.
    """
    total, count = 0.0 + 0.0j, 0
    for row in _spread(len(index.numbers), CHECKED_EPISODES):
        proprio, actions = columns.episode(row)
        velocity = proprio[1:, PROPRIO_IN_USE.slice("base_qvel")].astype(np.float64) @ [1, 1j, 0]
        command = actions[:-1, ACTION.slice("base")].astype(np.float64) @ [1, 1j, 0]
        is_moving = (abs(command) > MIN_COMMAND) & (abs(velocity) > MIN_SPEED)
        turned = velocity[is_moving] * command[is_moving].conj()
        total += (turned / abs(turned)).sum()
        count += len(turned)
    return abs(total) / count if count >= MIN_MOVING_ROWS else None


def _outside_statistics(index: EpisodeIndex) -> list[str]:
    """Returns which of the corrected fields exceed the bounds in meta/stats.json, in the first rows of some files."""
    path = index.root / "meta/stats.json"
    if not path.is_file():
        return []
    stats = json.loads(path.read_text(encoding="utf-8")).get(PROPRIO)
    if stats is None:
        return []
    bounds = [np.array(stats[kind], np.float64) for kind in ("min", "max")]
    slack = 1e-4 * (1 + np.abs(bounds))
    found = set()
    files = np.unique(index.data_ids)
    for i in _spread(len(files), CHECKED_FILES):
        with pq.ParquetFile(index.root / index.data_files[files[i]]) as file:
            batch = next(file.iter_batches(columns=[PROPRIO]))
        rows = batch[PROPRIO].flatten().to_numpy().reshape(len(batch), -1)
        is_outside = ((rows < bounds[0] - slack[0]) | (rows > bounds[1] + slack[1])).any(axis=0)
        found |= {name for name in CORRECTED_FIELDS if is_outside[PROPRIO_2026.slice(name)].any()}
    fields = [name for name in CORRECTED_FIELDS if name in found]
    return [f"values of {', '.join(fields)} lie outside the bounds in {path}"] if fields else []


def _spread(count: int, most: int) -> list[int]:
    """Returns at most so many of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def _notes(root: pathlib.Path, files: Iterable[str]) -> Iterable[tuple[str, dt.datetime]]:
    """Yields commit and time of the files that huggingface_hub fetched: the lines of a note are commit, etag, time."""
    for file in files:
        path = root / NOTES / f"{file}.metadata"
        if path.is_file():
            commit, _, seconds = path.read_text().split()[:3]
            yield commit, dt.datetime.fromtimestamp(float(seconds), dt.UTC)


def _snapshot(root: pathlib.Path) -> str | None:
    """Returns the commit in the path of huggingface_hub's cache, <repository>/snapshots/<commit>."""
    path = root.resolve()
    return path.name if path.parent.name == "snapshots" and COMMIT.fullmatch(path.name) else None


def _git_head(root: pathlib.Path) -> str | None:
    """Returns the commit that a git clone has checked out."""
    head = root / ".git/HEAD"
    if not head.is_file():
        return None
    text = head.read_text().strip()
    if COMMIT.fullmatch(text):
        return text
    branch = text.removeprefix("ref: ")
    if (root / ".git" / branch).is_file():
        return (root / ".git" / branch).read_text().strip()
    packed = root / ".git/packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {branch}")), None)
