"""The summary of a data set's training frames: counted in parallel, merged in an order that is always the same."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.statistics.counting import Counting
from openpi_b1k.data.statistics.summary import Summary
from openpi_b1k.robots.layout import Robot

FRAMES_PER_TASK = 200_000
FRAMES_WORTH_PROCESSES = 1_000_000
"""Starting processes takes a second or two."""
FRAMES_WITH_EVERY_STEP = 1_000_000
STRIDE = 4
"""Of more frames, quantiles of deltas take every fourth step of a chunk; moments always take all."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `number` of `total` equal ones, counted from 0."""

    number: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.total:
            raise ValueError(f"a shard I/N must have 0 <= I < N; got {self.number}/{self.total}")

    def __str__(self) -> str:
        return f"{self.number}-of-{self.total}"

    def of(self, index: EpisodeIndex) -> EpisodeIndex:
        """Returns the index of the episodes whose data files are this shard's, so that shards read different files."""
        files = np.array_split(np.unique(index.data_ids), self.total)[self.number]
        return index.take(np.flatnonzero(np.isin(index.data_ids, files)))


def parse_shard(text: str) -> Shard:
    """Returns the shard of a text such as 3/64.

    Raises:
        ValueError: it is not of that form, or its number is not below its count.
    """
    number, separator, total = text.partition("/")
    if not (separator and number.isdecimal() and total.isdecimal()):
        raise ValueError(f"a shard is I/N, such as 0/8; got {text!r}")
    return Shard(int(number), int(total))


WHOLE = Shard()


def summarise(
    index: EpisodeIndex,
    robot: Robot,
    transforms: TransformConfig,
    action_horizon: int,
    shard: Shard = WHOLE,
    num_processes: int = 0,
) -> Summary:
    """Returns the summary of the windows of the index's episodes, under a progress bar.

    Args:
        index: the training episodes; their columns are converted here if they were not before.
        robot: with the state layout of `transforms`.
        transforms: decide which actions are deltas, and whether steps are counted by themselves.
        action_horizon: actions per chunk.
        shard: which part of the episodes.
        num_processes: 0 takes all cores where that is worth it.
    """
    stride = STRIDE if len(index) > FRAMES_WITH_EVERY_STEP else 1
    counting = Counting(robot, transforms, action_horizon, stride)
    index = shard.of(index)
    columns = Columns(index, robot)
    columns.ensure()
    if not num_processes:
        num_processes = len(os.sched_getaffinity(0)) if len(index) >= FRAMES_WORTH_PROCESSES else 1
    total = counting.empty()
    with tqdm(total=len(index), desc="norm stats", unit=" frames", unit_scale=True, disable=None) as bar:
        for part in _parts(columns, counting, num_processes):
            total.merge(part)
            bar.update(part.frames)
    return total


def _parts(columns: Columns, counting: Counting, num_processes: int) -> Iterator[Summary]:
    tasks = list(_tasks(columns.index))
    if num_processes == 1:
        yield from (_count(columns, counting, rows) for rows in tasks)
        return
    # Not forked: the training process has threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, _start, (columns, counting)) as pool:
        yield from pool.map(_count_in_worker, tasks)


def _tasks(index: EpisodeIndex) -> Iterator[np.ndarray]:
    """Yields rows of the index, file by file, that have about FRAMES_PER_TASK frames together."""
    rows = np.lexsort((index.first_rows, index.data_ids))
    frames = np.cumsum((index.ends - index.begins)[rows])
    yield from np.split(rows, np.flatnonzero(np.diff(frames // FRAMES_PER_TASK)) + 1)


def _count(columns: Columns, counting: Counting, rows: np.ndarray) -> Summary:
    index, summary = columns.index, counting.empty()
    for row in rows.tolist():
        proprio, actions = columns.episode(row)
        window = slice(int(index.begins[row]), int(index.ends[row]))
        counting.add(summary, proprio[window], actions[window], int(index.numbers[row]))
    return summary


_given: list[tuple[Columns, Counting]] = []
"""In a worker process: what all its tasks share, sent once."""


def _start(columns: Columns, counting: Counting) -> None:
    _given[:] = [(columns, counting)]


def _count_in_worker(rows: np.ndarray) -> Summary:
    return _count(*_given[0], rows)
