"""The summary of a data set's training frames: counted in parallel, merged in an order that is always the same.

Threads, not processes: nearly all the work is in NumPy's loops, which leave the interpreter to others, and starting
processes takes as long as counting a million frames.
"""

import collections
import concurrent.futures
import os
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.shards import Shard
from openpi_b1k.data.statistics.counting import Counting, Window
from openpi_b1k.data.statistics.summary import Summary
from openpi_b1k.robots.layout import Robot

FRAMES_PER_TASK = 200_000
FRAMES_ALL_COUNTED = 1_000_000
STRIDE = 9
"""Of more frames, quantiles of deltas take every ninth at each step of a chunk; moments always take all.

The bound of 1e-3 of the range then rests on motion not repeating every ninth frame throughout the data."""
WHOLE = Shard()


def of_shard(index: EpisodeIndex, shard: Shard) -> EpisodeIndex:
    """Returns the index of the episodes whose data files are a shard's, so that shards read different files."""
    files = shard.take(np.unique(index.data_ids).tolist())
    return index.take(np.flatnonzero(np.isin(index.data_ids, files)))


def summarise(
    index: EpisodeIndex,
    robot: Robot,
    transforms: TransformConfig,
    action_horizon: int,
    shard: Shard = WHOLE,
    num_threads: int = 0,
) -> Summary:
    """Returns the summary of the windows of the index's episodes, under a progress bar.

    Args:
        index: the training episodes; their columns are converted here if they were not before.
        robot: with the state layout of `transforms`.
        transforms: decide which actions are deltas, and whether steps are counted by themselves.
        action_horizon: actions per chunk.
        shard: which part of the episodes.
        num_threads: 0 takes all cores.
    """
    stride = STRIDE if len(index) > FRAMES_ALL_COUNTED else 1
    counting = Counting(robot, transforms, action_horizon, stride)
    index = of_shard(index, shard)
    columns = Columns(index, robot)
    columns.ensure()
    total = counting.empty()
    with tqdm(total=len(index), desc="norm stats", unit=" frames", unit_scale=True, disable=None) as bar:
        for part in _parts(columns, counting, num_threads or len(os.sched_getaffinity(0))):
            total.merge(part)
            bar.update(part.frames)
    return total


def _parts(columns: Columns, counting: Counting, num_threads: int) -> Iterator[Summary]:
    """Yields the summaries of all tasks in order; only a few wait to be merged, since each may have many bins."""
    pending: collections.deque[concurrent.futures.Future[Summary]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for rows in _tasks(columns.index):
            pending.append(pool.submit(counting.summarise, _windows(columns, rows)))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _tasks(index: EpisodeIndex) -> Iterator[np.ndarray]:
    """Yields rows of the index, file by file, that have about FRAMES_PER_TASK frames together."""
    rows = np.lexsort((index.first_rows, index.data_ids))
    frames = np.cumsum((index.ends - index.begins)[rows])
    yield from np.split(rows, np.flatnonzero(np.diff(frames // FRAMES_PER_TASK)) + 1)


def _windows(columns: Columns, rows: np.ndarray) -> Iterator[Window]:
    """Yields what is counted of the rows' episodes."""
    index = columns.index
    for row in rows.tolist():
        proprio, actions = columns.episode(row)
        used = slice(int(index.begins[row]), int(index.ends[row]))
        yield Window(proprio[used], actions[used])
