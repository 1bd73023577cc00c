"""Rollouts that `scripts/evaluate.py closed-loop --record` wrote; see `openpi_b1k/rollouts/recordings.py`."""

import pathlib

from openpi_b1k.curation.rollouts.episode import FPS, Columns, Episode
from openpi_b1k.rollouts.recordings import FACTS_FILE, open_recording


def find(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories below `root`, or `root` itself, that are such rollouts."""
    return sorted(path.parent for path in root.rglob(FACTS_FILE))


def read(directory: pathlib.Path, task: str | None, skipped_frames: int | None) -> Episode:
    """Returns the rollout in a directory.

    Args:
        directory: of one rollout.
        task: of no use here; every recording tells its own.
        skipped_frames: left out at the beginning; None: none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or frames are not 30 a second.
    """
    del task
    recording = open_recording(directory)
    if recording.fps != FPS:
        raise ValueError(f"it has {recording.fps} frames a second; demonstrations have {FPS}")
    return Episode(
        directory=directory,
        task=recording.task,
        prompt=recording.prompt,
        instance_id=recording.instance_id,
        rollout_id=recording.rollout_id,
        success=recording.success,
        q_score=recording.q_score,
        videos=dict(recording.videos),
        read_columns=read_columns,
        skipped_frames=skipped_frames or 0,
    )


def read_columns(directory: pathlib.Path) -> Columns:
    """Returns the rows of the rollout in a directory; see `open_recording` for what is raised."""
    recording = open_recording(directory)
    return recording.proprio, recording.action
