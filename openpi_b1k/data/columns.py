"""Proprio and actions of an episode, read from parquet and kept in memory up to a bound."""

import collections
import dataclasses
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.data.episodes import EpisodeIndex

PROPRIO = "observation.state"
ACTION = "action"
EPISODE = "episode_index"
CACHE_BYTES = 512 * 2**20
"""Kept per process; the files asked for longest ago go first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one file."""

    proprio: np.ndarray
    """float32 [n, p]"""
    actions: np.ndarray
    """float32 [n, 23]"""
    slices: dict[int, slice]
    """Episode number -> its rows."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.proprio.nbytes + self.actions.nbytes


class Columns:
    """Reads proprio and actions by episode. Threads may share one; pickling leaves its memory behind."""

    def __init__(self, index: EpisodeIndex, action_size: int, cache_bytes: int = CACHE_BYTES) -> None:
        """Reads nothing yet; holds at most `cache_bytes` of what it reads, but always one file."""
        self._index = index
        self._action_size = action_size
        self._cache_bytes = cache_bytes
        self._files: collections.OrderedDict[int, Rows] = collections.OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own."""
        return Columns, (self._index, self._action_size, self._cache_bytes)

    def episode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns proprio float32 [n, p] and actions float32 [n, 23] of an episode, by its row in the index.

        They are views of shared memory: copy before you change them.

        Raises:
            ValueError: the file does not hold the rows that the meta files promise.
        """
        file_id = int(self._index.data_ids[row])
        rows = self._file(file_id)
        number, length = int(self._index.numbers[row]), int(self._index.lengths[row])
        where = rows.slices.get(number, slice(0, 0))
        if where.stop - where.start != length:
            raise ValueError(
                f"{self._index.root / self._index.data_files[file_id]} has {where.stop - where.start} rows of episode "
                f"{number}, but meta/ says {length}; download the file again"
            )
        return rows.proprio[where], rows.actions[where]

    def _file(self, file_id: int) -> Rows:
        with self._lock:
            if file_id in self._files:
                self._files.move_to_end(file_id)
                return self._files[file_id]
        rows = self._read(file_id)
        with self._lock:
            if file_id not in self._files:
                self._files[file_id] = rows
                self._held_bytes += rows.nbytes
            while self._held_bytes > self._cache_bytes and len(self._files) > 1:
                self._held_bytes -= self._files.popitem(last=False)[1].nbytes
        return rows

    def _read(self, file_id: int) -> Rows:
        path = self._index.root / self._index.data_files[file_id]
        if not path.is_file():
            raise FileNotFoundError(f"no data file {path}; download it, or choose other tasks with --data.tasks")
        missing = sorted({EPISODE, PROPRIO, ACTION} - set(pq.read_schema(path).names))
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        table = pq.read_table(path, columns=[EPISODE, PROPRIO, ACTION], use_threads=False)
        numbers = table[EPISODE].to_numpy()
        firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        slices = {
            int(numbers[first]): slice(int(first), int(stop))
            for first, stop in zip(firsts, [*firsts[1:], len(numbers)], strict=True)
        }
        if len(slices) != len(firsts):
            raise ValueError(f"{path} holds an episode in several pieces; its rows must be contiguous")
        return Rows(
            proprio=_vectors(table[PROPRIO], self._index.proprio_size, f"{PROPRIO} of {path}"),
            actions=_vectors(table[ACTION], self._action_size, f"{ACTION} of {path}"),
            slices=slices,
        )


def _vectors(column: pa.ChunkedArray, size: int, what: str) -> np.ndarray:
    """Returns a column of lists as float32 [n, size]."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if lists.null_count or values.size != len(lists) * size:
        raise ValueError(f"{what} must hold {size} numbers in each of {len(lists)} rows; got {values.size} in all")
    rows = values.reshape(len(lists), size)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"{what} has NaN or infinity, first in row {bad}; leave that task out with --data.tasks")
    return rows
