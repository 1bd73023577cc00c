"""Where the fields of a batch lie in memory, and memory for batches that processes share. Must not need jax."""

import dataclasses
import math
import mmap
import os
import weakref
from collections.abc import Mapping
from multiprocessing import reduction
from typing import Any, TypeAlias

import numpy as np

ALIGNMENT = 64
"""Bytes. On a CPU device, JAX takes over an array that begins at a multiple of them, and copies another."""

Path: TypeAlias = tuple[str, ...]
"""Of an array in a sample: the field's name, and for images and masks the camera's."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of a batch."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    """Of a row."""
    offset: int
    """Of its first byte."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch lies in one block of memory: its arrays one after the other, each contiguous and aligned."""

    size: int
    """Rows."""
    entries: tuple[Entry, ...]
    nbytes: int

    @staticmethod
    def of(arrays: Mapping[Path, np.ndarray], size: int) -> "Layout":
        """Returns the layout of `size` rows like this one."""
        entries, offset = [], 0
        for path, row in arrays.items():
            entries.append(Entry(path, row.dtype, row.shape, offset))
            offset += -(-size * row.nbytes // ALIGNMENT) * ALIGNMENT
        return Layout(size, tuple(entries), offset)

    def views(self, block: np.ndarray) -> dict[Path, np.ndarray]:
        """Returns the arrays [size, ...] that lie in a block, uint8 [nbytes]."""
        views = {}
        for entry in self.entries:
            shape = (self.size, *entry.shape)
            end = entry.offset + math.prod(shape) * entry.dtype.itemsize
            views[entry.path] = block[entry.offset : end].view(entry.dtype).reshape(shape)
        return views


class OwnBlocks:
    """Blocks of this process's own memory; one is used again when no array lies in it any more.

    Fresh memory costs more than what is written to it: the system clears it first, page by page.
    """

    def __init__(self) -> None:
        """Takes no memory yet."""
        self._free: dict[int, list[mmap.mmap]] = {}

    def block(self, nbytes: int) -> np.ndarray:
        """Returns a block that nobody else uses, aligned, whatever is in it: uint8 [nbytes]."""
        free = self._free.setdefault(nbytes, [])
        memory = free.pop() if free else mmap.mmap(-1, max(nbytes, 1))
        block = np.frombuffer(memory, np.uint8, nbytes)
        # Every array in the block refers to this one, JAX's that take it over, too.
        weakref.finalize(block, free.append, memory).atexit = False
        return block


class SharedBlocks:
    """Blocks of memory that this process and those it is sent to share; they are made when the layout is known.

    The memory is a file without a name: it needs no room in /dev/shm, which containers often keep to 64 MB, and the
    system takes it back when the last process is gone, however that ended. Send it only as an argument of a process
    that is being started.
    """

    def __init__(self, count: int) -> None:
        """Makes room for `count` blocks, still of 0 bytes."""
        self._file, self._count = os.memfd_create("openpi_b1k batches"), count
        self._layout: Layout | None = None
        self._blocks: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a process that is being started gets: the same memory, which it maps itself."""
        return vars(self) | {"_file": reduction.DupFd(self._file), "_layout": None, "_blocks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the memory over."""
        vars(self).update(state | {"_file": state["_file"].detach()})

    def views(self, layout: Layout, number: int) -> dict[Path, np.ndarray]:
        """Returns the arrays of block `number`, counted on beyond the last block from the first again.

        Raises:
            ValueError: an earlier call had another layout.
        """
        if self._layout is None:
            self._map(layout)
        elif layout != self._layout:
            raise ValueError(
                f"samples of a run must have the same fields, sizes and types; one has {describe(layout)}, an earlier "
                f"one {describe(self._layout)}"
            )
        return layout.views(self._blocks[number % self._count])

    def block(self, number: int) -> np.ndarray:
        """Returns block `number`, uint8 [nbytes]; `views` must have been called."""
        return self._blocks[number % self._count]

    def _map(self, layout: Layout) -> None:
        size = -(-layout.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if os.fstat(self._file).st_size < self._count * size:  # or another process has made room
            os.ftruncate(self._file, self._count * size)
        memory = np.frombuffer(mmap.mmap(self._file, self._count * size), np.uint8)
        self._blocks = [memory[i * size :][: layout.nbytes] for i in range(self._count)]
        self._layout = layout

    def close(self) -> None:
        """Gives the memory back, unless arrays of it are in use."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._blocks = -1, []


def describe(layout: Layout) -> str:
    """Returns the rows' fields as text, such as `state float32 [32]`."""
    return ", ".join(f"{'.'.join(entry.path)} {entry.dtype} {list(entry.shape)}" for entry in layout.entries)
