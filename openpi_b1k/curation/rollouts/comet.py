"""openpi-comet's rollouts: a directory each, with three videos and a pickle of states and actions.

    <experiment>/cfg*.out                                    holds task_name=NAME
    <experiment>/rollouts/<instance>_<episode>/head.mp4, left_wrist.mp4, right_wrist.mp4, state_action.npz

Its script keeps successful rollouts only. Source: openpi-comet at 4bb2aa7, `data_generation/rft/generate_rft_index.py`
and `convert_rft_data.py`.
"""

import pathlib
import re

from openpi_b1k.config.data import CAMERAS
from openpi_b1k.curation.rollouts.episode import Columns, Episode
from openpi_b1k.curation.rollouts.unpickling import read_vectors

ROWS = "state_action.npz"
FOLDER = "rollouts"
NAME = re.compile(r"(\d+)_(\d+)")
TASK = re.compile(r"\btask_name=[\"']?(\w+)")
SKIPPED_FRAMES = 15
"""Left out at the beginning by openpi-comet's own conversion."""


def find(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories below `root`, or `root` itself, that are such rollouts."""
    return sorted(path.parent for path in root.rglob(ROWS) if path.parent.parent.name == FOLDER)


def read(directory: pathlib.Path, task: str | None, skipped_frames: int | None) -> Episode:
    """Returns the rollout in a directory.

    Args:
        directory: of one rollout.
        task: name for rollouts beside which no cfg*.out tells it.
        skipped_frames: left out at the beginning; None: as many as openpi-comet leaves out.

    Raises:
        ValueError: nothing tells the task, or the directory is not named <instance>_<episode>.
    """
    numbers = NAME.fullmatch(directory.name)
    if numbers is None:
        raise ValueError("its directory must be named <instance>_<episode>")
    return Episode(
        directory=directory,
        task=task_name(directory.parents[1]) or _given(task, directory),
        prompt=None,
        instance_id=int(numbers[1]),
        rollout_id=int(numbers[2]),
        success=True,
        q_score=None,
        videos={camera: directory / f"{camera}.mp4" for camera in CAMERAS},
        read_columns=read_columns,
        skipped_frames=SKIPPED_FRAMES if skipped_frames is None else skipped_frames,
    )


def task_name(experiment: pathlib.Path) -> str | None:
    """Returns the task that an experiment's cfg*.out names; None without such a file.

    Raises:
        ValueError: the files name several tasks, or none.
    """
    files = sorted(experiment.glob("cfg*.out"))
    names = {name for path in files for name in TASK.findall(path.read_text(encoding="utf-8", errors="replace"))}
    if files and len(names) != 1:
        raise ValueError(f"{experiment}/cfg*.out must name one task; found {', '.join(sorted(names)) or 'none'}")
    return next(iter(names), None)


def _given(task: str | None, directory: pathlib.Path) -> str:
    if task is None:
        raise ValueError(f"no {directory.parents[1]}/cfg*.out tells its task; give its name with --task")
    return task


def read_columns(directory: pathlib.Path) -> Columns:
    """Returns the rows of the rollout in a directory.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, holds what it must not, or lacks states or actions.
    """
    vectors = read_vectors(directory / ROWS)
    missing = {"state", "action"} - vectors.keys()
    if missing:
        raise ValueError(f"{ROWS} lacks {' and '.join(sorted(missing))}; it holds {', '.join(vectors) or 'nothing'}")
    return vectors["state"], vectors["action"]
