"""Proprio and actions of an episode, mapped from column files that are made from parquet on first use."""

import collections
import concurrent.futures
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import threading

import numpy as np
from tqdm import tqdm

from openpi_b1k import paths
from openpi_b1k.data import column_files
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.robots.layout import Layout, Robot

logger = logging.getLogger(__name__)

MAX_MAPS = 256
"""Column files mapped at once per process; those used longest ago are closed first."""
LOOKS = 32
"""Threads that look at files: on a shared file system this takes a millisecond each."""
SPARE_BYTES = 2**30
"""Left free on the disk."""


def proprio_in_use(robot: Robot) -> Layout:
    """Returns the layout of the proprio that column files hold: the smallest the robot's state can be made from."""
    needed = {source.proprio_field for _, source in robot.sources}
    return min((layout for layout in robot.proprios if needed <= set(layout.names)), key=lambda layout: layout.size)


class Columns:
    """Proprio and actions by episode, of every row whatever the window. Threads may share one; it pickles small."""

    def __init__(self, index: EpisodeIndex, robot: Robot) -> None:
        """Reads nothing yet.

        Args:
            index: of the data set.
            robot: knows which entries of proprio are in use, and the action's size.

        Raises:
            ValueError: the robot sends no proprio of the data set's size.
        """
        self.index = index
        self.robot = robot
        given, used = robot.proprio(index.proprio_size), proprio_in_use(robot)
        positions = [i for name in used.names for i in range(*given.slice(name).indices(given.size))]
        self._kept = column_files.Kept(given.size, tuple(positions), robot.action.size)
        # Other entries in use are other files, so that two versions of a robot's table never share one.
        key = hashlib.sha256(f"{index.meta_digest} {used} {robot.action.names} {positions}".encode()).hexdigest()[:32]
        self.directory = paths.cache_dir() / "columns" / key
        self._maps: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own."""
        return Columns, (self.index, self.robot)

    def episode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns proprio float32 [n, 25] and actions float32 [n, 23] of all an episode's rows; `row` is the index's.

        They are read-only views of a mapped file. A file that was not converted before is converted now.

        Raises:
            FileNotFoundError: the parquet file is missing.
            ValueError: it does not hold what the meta files promise.
        """
        values = self._map(int(self.index.data_ids[row]))
        first, size = int(self.index.first_rows[row]), len(self._kept.positions)
        episode = values[first : first + int(self.index.lengths[row])]
        return episode[:, :size], episode[:, size:]

    def ensure(self) -> None:
        """Converts every data file of the index that is not converted yet, under a progress bar.

        Raises:
            FileNotFoundError: a parquet file is missing.
            ValueError: one does not hold what the meta files promise; the message says where.
            OSError: the disk has not enough room.
        """
        with concurrent.futures.ThreadPoolExecutor(LOOKS) as pool:
            files = np.unique(self.index.data_ids).tolist()
            missing = [file for file, fresh in zip(files, pool.map(self._is_fresh, files), strict=True) if not fresh]
            rows = list(pool.map(lambda file: column_files.num_rows(self._source(file)), missing))
        if not missing:
            return
        self._check_room(len(missing), sum(rows))
        by_size = dict(zip(missing, rows, strict=True))
        bar = tqdm(total=sum(rows), desc="columns", unit=" rows", unit_scale=True, disable=None)
        with bar, concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            # Files that another process has in hand come last: most of them are done by then.
            for wait in (False, True):
                done = pool.map(functools.partial(self._convert, wait=wait), missing)
                left = []
                for file, is_there in zip(missing, done, strict=True):
                    bar.update(by_size[file] if is_there else 0)
                    left += [] if is_there else [file]
                missing = left

    def _check_room(self, num_files: int, num_rows: int) -> None:
        needed = num_rows * self._kept.width * column_files.DTYPE.itemsize
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        logger.info(
            "columns: %d data files, %d rows, %.3f GB to be written to %s (%.1f GB free)",
            *(num_files, num_rows, needed / 1e9, self.directory, free / 1e9),
        )
        if needed + SPARE_BYTES > free:
            raise OSError(
                f"columns of {self.index.root} need {needed / 1e9:.1f} GB and {SPARE_BYTES / 1e9:.1f} GB to spare in "
                f"{self.directory}, where {free / 1e9:.1f} GB are free; make room, or set OPENPI_B1K_CACHE to a "
                "directory on a larger disk"
            )

    def _source(self, file: int) -> pathlib.Path:
        return self.index.root / self.index.data_files[file]

    def _target(self, file: int) -> pathlib.Path:
        return self.directory / f"{self.index.data_files[file]}.npy"

    def _is_fresh(self, file: int) -> bool:
        return column_files.is_fresh(self._source(file), self._target(file))

    def _convert(self, file: int, *, wait: bool) -> bool:
        check = functools.partial(self._check_runs, file)
        return column_files.convert(self._source(file), self._target(file), self._kept, check, wait=wait)

    def _map(self, file: int) -> np.ndarray:
        with self._lock:
            if file in self._maps:
                self._maps.move_to_end(file)
                return self._maps[file]
        if not self._is_fresh(file):
            self._convert(file, wait=True)
        values, runs, _ = column_files.open_columns(self._target(file))
        self._check_runs(file, runs)
        with self._lock:
            self._maps[file] = values
            while len(self._maps) > MAX_MAPS:
                self._maps.popitem(last=False)
        return values

    def _check_runs(self, file: int, runs: np.ndarray) -> None:
        """Refuses a file in which an episode of the index does not lie where the meta files say."""
        index, path = self.index, self._source(file)
        rows = np.flatnonzero(index.data_ids == file)
        by_number = {number: (first, length) for number, first, length in runs.tolist()}
        if len(by_number) != len(runs):
            raise ValueError(f"{path} holds an episode in several pieces; its rows must be contiguous")
        promised = zip(
            *(array[rows].tolist() for array in (index.numbers, index.first_rows, index.lengths)), strict=True
        )
        for number, first, length in promised:
            found_first, found = by_number.get(number, (first, 0))
            if found != length:
                raise ValueError(
                    f"{path} has {found} rows of episode {number}, but meta/ says {length}; download the file again"
                )
            if found_first != first:
                raise ValueError(
                    f"{path} has episode {number} from row {found_first}, but meta/ says from row {first}; download "
                    "the file and meta/ again"
                )
