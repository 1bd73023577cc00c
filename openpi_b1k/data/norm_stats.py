"""Statistics of exactly what Normalize sees, from parquet alone.

State: every frame counts once. Actions: every real step of every frame's chunk counts, after the delta transform, and
steps past an episode's end do not; an action therefore counts once for each chunk that holds it. Mean and standard
deviation are exact (float64, merged pairwise). Quantiles are exact up to MAX_ROWS vectors; of more, a seeded uniform
subsample of about MAX_ROWS is kept, which puts q01 and q99 within 0.0003 of their ranks (three standard deviations).
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from openpi_b1k import paths
from openpi_b1k.config.data import Normalization, TransformConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.episodes import EpisodeIndex
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.normalize import FieldStats, NormStats, near_constant
from openpi_b1k.transforms.pipeline import statistics_pipeline

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache's key: raise it when the same data would give other numbers."""
MAX_ROWS = 2_000_000
BLOCK_FRAMES = 4096


class RunningStats:
    """Statistics of vectors that come in blocks."""

    def __init__(self, expected_rows: int, max_rows: int = MAX_ROWS) -> None:
        """Starts with none.

        Args:
            expected_rows: vectors that will come; decides what part of them is kept for the quantiles.
            max_rows: vectors kept for the quantiles, about.
        """
        self._keep_part = min(1.0, max_rows / max(expected_rows, 1))
        self._rng = np.random.default_rng(0)
        self._kept: list[np.ndarray] = []
        self._count = 0
        self._mean = np.zeros(0)
        self._squares = np.zeros(0)

    def update(self, rows: np.ndarray) -> None:
        """Adds vectors [n, d]. Source: Chan et al. (1979), pairwise update of mean and sum of squared deviations."""
        if not len(rows):
            return
        mean = rows.mean(axis=0, dtype=np.float64)
        squares = ((rows - mean) ** 2).sum(axis=0)
        if self._count:
            total, shift = self._count + len(rows), mean - self._mean
            squares = self._squares + squares + shift**2 * (self._count * len(rows) / total)
            mean = self._mean + shift * (len(rows) / total)
        self._count, self._mean, self._squares = self._count + len(rows), mean, squares
        is_kept = slice(None) if self._keep_part == 1 else self._rng.random(len(rows)) < self._keep_part
        self._kept.append(np.array(rows[is_kept], np.float32))

    def result(self) -> FieldStats:
        """Returns the statistics of all vectors so far.

        Raises:
            ValueError: there were none.
        """
        if not self._count:
            raise ValueError("no statistics of no rows; the data set is empty")
        kept = np.concatenate(self._kept)
        q01, q99 = np.transpose([np.quantile(column.astype(np.float64), (0.01, 0.99)) for column in kept.T])
        return FieldStats(mean=self._mean, std=np.sqrt(self._squares / self._count), q01=q01, q99=q99)


def compute(
    index: EpisodeIndex, columns: Columns, transforms: TransformConfig, robot: Robot, action_horizon: int
) -> NormStats:
    """Returns the statistics of a data set, under a progress bar.

    Args:
        index: its episodes.
        columns: reads their proprio and actions.
        transforms: decides the state and which actions are deltas.
        robot: with the state layout of `transforms`.
        action_horizon: actions per chunk.
    """
    pipeline = statistics_pipeline(transforms, robot)
    state = RunningStats(len(index))
    actions = RunningStats(count_steps(index.lengths, action_horizon))
    with tqdm(total=len(index), desc="norm stats", unit=" frames", unit_scale=True, disable=None) as bar:
        for row in np.lexsort((index.numbers, index.data_ids)).tolist():
            for block, is_real in chunks(*columns.episode(row), action_horizon):
                seen = pipeline(block)
                state.update(seen["state"])
                actions.update(seen["actions"][is_real])
                bar.update(len(is_real))
    return NormStats(state.result(), actions.result())


def chunks(
    proprio: np.ndarray, actions: np.ndarray, action_horizon: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields an episode's samples, many at once, {"proprio" [n, p], "actions" [n, ah, a]}, and which steps are real."""
    steps = np.arange(action_horizon)
    for first in range(0, len(actions), BLOCK_FRAMES):
        frames = np.arange(first, min(first + BLOCK_FRAMES, len(actions)))
        rows = frames[:, None] + steps
        block = {"proprio": proprio[frames], "actions": actions[np.minimum(rows, len(actions) - 1)]}
        yield block, rows < len(actions)


def count_steps(lengths: np.ndarray, action_horizon: int) -> int:
    """Returns how many real steps the chunks of episodes of these lengths have.

    An episode of n frames has n chunks; the last one has 1 real step, the one before 2, and so on up to the horizon:
    with n = 5 and a horizon of 3: 3 + 3 + 3 + 2 + 1 = 12.
    """
    short = np.minimum(lengths, action_horizon)
    return int((lengths * action_horizon - short * action_horizon + short * (short + 1) // 2).sum())


def cached_path(index: EpisodeIndex, transforms: TransformConfig, action_horizon: int) -> pathlib.Path:
    """Returns where the statistics of these data under these transforms are kept; no other setting changes them."""
    key = {
        "version": VERSION,
        "fingerprint": index.fingerprint,
        "state_layout": transforms.state_layout,
        "delta_fields": sorted(transforms.delta_fields),
        "action_horizon": action_horizon,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return paths.cache_dir() / "norm_stats" / f"{name}.json"


def load_or_compute(
    index: EpisodeIndex, columns: Columns, transforms: TransformConfig, robot: Robot, action_horizon: int
) -> tuple[NormStats, pathlib.Path]:
    """Returns the statistics of a data set and where they are kept: computed the first time, read afterwards."""
    path = cached_path(index, transforms, action_horizon)
    if path.is_file():
        logger.info("norm stats: %s", path)
        return NormStats.from_json(path.read_text()), path
    logger.info("norm stats: computing from %d frames, to be kept in %s", len(index), path)
    stats = compute(index, columns, transforms, robot, action_horizon)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(stats.to_json())
    temporary.replace(path)
    return stats, path


def table(stats: NormStats, robot: Robot, normalization: Normalization) -> str:
    """Returns the statistics as text, an entry a line; a star marks those too constant to divide by their spread."""
    guarded = near_constant(stats, robot, normalization)
    lines = [f"{'':28}{'mean':>12}{'std':>12}{'q01':>12}{'q99':>12}"]
    for group, fields, layout in (("state", stats.state, robot.state), ("actions", stats.actions, robot.action)):
        names = [f"{group}.{field.name}[{i}]" for field in layout.fields for i in range(field.size)]
        rows = zip(names, fields.mean, fields.std, fields.q01, fields.q99, strict=True)
        for name, *values in rows:
            mark = " *" if name in guarded else ""
            lines.append(f"{name:28}" + "".join(f"{value:12.5g}" for value in values) + mark)
    return "\n".join(lines)
