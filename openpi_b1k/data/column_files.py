"""One parquet file's columns in use, as an uncompressed array on disk that is mapped instead of decoded.

A column file is three arrays in NumPy's format, one after the other: the values float32 [rows, kept proprio + action],
the runs int64 [k, 3] (episode number, first row, rows) and the hash of the parquet file's footer uint8 [32]. The footer
holds sizes and statistics of every column, so it tells whether the file on disk is still the one that was converted,
wherever it lies and whatever its date.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.data.index.listing import ACTION, PROPRIO

EPISODE = "episode_index"
BLOCK_ROWS = 32_768
"""Rows decoded at once: memory is bounded whatever a file's size."""
DTYPE = np.dtype("<f4")
_FOOTER_TAIL = 8
"""Bytes at a parquet file's end: the footer's length, and PAR1."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of each row."""

    proprio_size: int
    """Entries the parquet file has."""
    positions: tuple[int, ...]
    """Which of them are kept, in this order."""
    action_size: int

    @property
    def width(self) -> int:
        """Numbers per row of a column file."""
        return len(self.positions) + self.action_size


Check = Callable[[np.ndarray], None]
"""Takes the runs of a file, and raises ValueError if they are not what the meta files promise."""


def num_rows(source: pathlib.Path) -> int:
    """Returns how many rows a parquet file has; reads its footer alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a parquet file, or was cut short.
    """
    with _parquet(source) as file:
        return file.metadata.num_rows


def is_fresh(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Returns whether `target` was converted from what `source` now holds; without `source`, whether it is there."""
    try:
        made = target.stat()
    except FileNotFoundError:
        return False
    if not source.is_file() or source.stat().st_mtime_ns == made.st_mtime_ns:
        return True
    return open_columns(target)[2].tobytes() == footer_hash(source)


def open_columns(target: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns values float32 [rows, width], mapped, runs int64 [k, 3] and the footer's hash uint8 [32]."""
    values = np.load(target, mmap_mode="r")
    with target.open("rb") as file:
        file.seek(values.offset + values.nbytes)
        return np.asarray(values), np.load(file), np.load(file)


def convert(source: pathlib.Path, target: pathlib.Path, kept: Kept, check: Check, *, wait: bool) -> bool:
    """Writes a column file if it is missing or out of date, and returns whether it is there now.

    Args:
        source: parquet file.
        target: column file; it appears when it is whole.
        kept: what is kept of each row.
        check: refuses runs of episodes that are not the promised ones, before the file appears.
        wait: for another process that is writing the same file, instead of returning False.

    Raises:
        FileNotFoundError: there is no parquet file.
        ValueError: it does not hold what is promised, or a number in it is not finite.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with _sole_writer(partial, wait=wait) as output:
        if output is None:
            return False
        if not is_fresh(source, target):
            _write(source, output, kept, check)
            partial.rename(target)
        else:
            partial.unlink()
    return True


def footer_hash(source: pathlib.Path) -> bytes:
    """Returns the SHA-256 of a parquet file's footer and size."""
    with source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _FOOTER_TAIL))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - _FOOTER_TAIL - length))
        return hashlib.sha256(size.to_bytes(8, "little") + file.read()).digest()


@contextlib.contextmanager
def _sole_writer(partial: pathlib.Path, *, wait: bool) -> Iterator[BinaryIO | None]:
    """Yields the partial file, open and empty, to one process at a time; None to the others if they do not wait."""
    while True:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            # Whoever held the lock may have renamed the file meanwhile: then this is not the partial one any more.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                    file.truncate()
                    yield file
                    return


def _write(source: pathlib.Path, output: BinaryIO, kept: Kept, check: Check) -> None:
    numbers, first = [], 0
    with _parquet(source) as file:
        date, footer = source.stat().st_mtime_ns, np.frombuffer(footer_hash(source), np.uint8)
        missing = sorted({EPISODE, PROPRIO, ACTION} - set(file.schema_arrow.names))
        if missing:
            raise ValueError(f"{source} lacks the columns {', '.join(missing)}")
        rows = file.metadata.num_rows
        header = {"descr": DTYPE.str, "fortran_order": False, "shape": (rows, kept.width)}
        np.lib.format.write_array_header_1_0(output, header)
        for batch in _batches(file, source):
            numbers.append(batch[EPISODE].to_numpy())
            block = _block(batch, kept, source)
            _check_finite(block, numbers[-1], first, kept, source)
            output.write(block.data)
            first += len(block)
    found = runs(np.concatenate(numbers) if numbers else np.zeros(0, np.int64))
    check(found)
    np.save(output, found)
    np.save(output, footer)
    output.flush()
    os.utime(output.fileno(), ns=(date, date))  # the parquet file's, so that a look at both dates mostly suffices


def runs(numbers: np.ndarray) -> np.ndarray:
    """Returns where each run of equal episode numbers [n] lies: int64 [k, 3] of number, first row, rows."""
    firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    return np.stack([numbers[firsts], firsts, np.diff(firsts, append=len(numbers))], axis=1).astype(np.int64)


def _block(batch: pa.RecordBatch, kept: Kept, source: pathlib.Path) -> np.ndarray:
    block = np.empty((batch.num_rows, kept.width), DTYPE)
    proprio = _vectors(batch[PROPRIO], kept.proprio_size, f"{PROPRIO} of {source}")
    np.take(proprio, kept.positions, axis=1, out=block[:, : len(kept.positions)])
    block[:, len(kept.positions) :] = _vectors(batch[ACTION], kept.action_size, f"{ACTION} of {source}")
    return block


def _vectors(lists: pa.ListArray, size: int, what: str) -> np.ndarray:
    """Returns a column of lists as [n, size]."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    if lists.null_count or (lengths != size).any():
        found = ", ".join(map(str, np.unique(lengths).tolist()))
        raise ValueError(f"{what} must hold {size} numbers in each row; some have {found}")
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), size)


def _check_finite(block: np.ndarray, numbers: np.ndarray, first: int, kept: Kept, source: pathlib.Path) -> None:
    # A sum is finite unless a number in it is not, or unless they overflow: then look closely.
    if np.isfinite(block.sum(dtype=np.float64)):
        return
    bad = ~np.isfinite(block)
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        what = PROPRIO if bad[row, : len(kept.positions)].any() else ACTION
        raise ValueError(
            f"{what} of {source} has NaN or infinity, first in row {first + row} (episode {numbers[row]}); "
            "leave that task out with --data.tasks, or that episode with --data.episodes"
        )


def _parquet(source: pathlib.Path) -> pq.ParquetFile:
    if not source.is_file():
        raise FileNotFoundError(f"no data file {source}; download it, or choose other tasks with --data.tasks")
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(source, error) from error


def _batches(file: pq.ParquetFile, source: pathlib.Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(BLOCK_ROWS, columns=[EPISODE, PROPRIO, ACTION], use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(f"{source} cannot be read as parquet: {error}; download it again")
