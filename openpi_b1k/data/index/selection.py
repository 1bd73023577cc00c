"""Which episodes are used, and which of them are held out from training.

Episodes are chosen by their position among all of their task's in the data set, in order of number: the same positions
mean the same demonstrations whatever else is chosen.
"""

import logging
from collections.abc import Iterable

import numpy as np

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.tasks import Task, task_numbers

logger = logging.getLogger(__name__)

HELD_OUT_PERCENT = 5


def choose(index: EpisodeIndex, source: SourceConfig, tasks: dict[int, Task]) -> EpisodeIndex:
    """Returns the index of the source's tasks and, of those, the episodes it trains on or holds out.

    Raises:
        ValueError: a task is unknown or has no episode, or a position is beyond a task's episodes.
    """
    if source.tasks:
        chosen = task_numbers(source.tasks, tasks, index.root / "meta")
        absent = [tasks[task].name for task in chosen if task not in index.tasks]
        if absent:
            held = ", ".join(tasks[task].name for task in np.unique(index.tasks).tolist())
            raise ValueError(f"no episodes of {', '.join(absent)} in {index.root}; it has {held}")
        index = index.select(chosen)
    _check_positions(index, source.episodes, "--data.episodes")
    _check_positions(index, source.validation_episodes or (), "--data.validation-episodes")
    if source.episodes:
        wanted = (*source.episodes, *(source.validation_episodes or ()))
        index = index.take(np.flatnonzero(np.isin(index.positions, wanted)))
    return index


def split(index: EpisodeIndex, source: SourceConfig) -> tuple[EpisodeIndex, EpisodeIndex]:
    """Returns (training, validation) of an index that was opened for `source`.

    Held out are the episodes at `source.validation_episodes` of each task; by default the last 5 % of a task's chosen
    episodes, rounded down, but at least one. A task with a single chosen episode then holds out none, which is logged.

    Raises:
        ValueError: nothing is left to train on.
    """
    held_out = np.isin(index.positions, source.validation_episodes or ())
    if source.validation_episodes is None:
        single = []
        for task in np.unique(index.tasks).tolist():
            rows = np.flatnonzero(index.tasks == task)
            if len(rows) == 1:
                single.append(index.task_names[task])
                continue
            rows = rows[np.argsort(index.positions[rows])]
            held_out[rows[-max(1, len(rows) * HELD_OUT_PERCENT // 100) :]] = True
        if single:
            logger.info("tasks with a single episode hold out none: %s", ", ".join(single))
    training, validation = index.take(np.flatnonzero(~held_out)), index.take(np.flatnonzero(held_out))
    absent = sorted({index.task_names[t] for t in np.unique(index.tasks)} - set(training.prompts_by_task()))
    if absent:
        raise ValueError(
            f"every chosen episode of {', '.join(absent)} is held out, so there is nothing to train on: choose more "
            "with --data.episodes, or fewer with --data.validation-episodes"
        )
    return training, validation


def _check_positions(index: EpisodeIndex, positions: Iterable[int], flag: str) -> None:
    """Refuses positions that a task does not have, which would be ignored otherwise."""
    last = max(positions, default=-1)
    for task, rows in zip(*np.unique(index.tasks, return_counts=True), strict=True):
        if last >= rows:
            raise ValueError(
                f"{flag} has position {last}, but task {index.task_names[int(task)]} has {rows} episodes (positions "
                f"0 to {rows - 1}) in {index.root}"
            )
