"""Frames of a video by number, whatever its codec, key frames, B-frames and start offset."""

import collections
import dataclasses
import itertools
import pathlib
import threading
from collections.abc import Iterator, Sequence

import av
import numpy as np

from openpi_b1k.data.frames.decoding import DecoderPool, Reader
from openpi_b1k.data.frames.files import OpenFile, OpenFiles
from openpi_b1k.data.frames.mp4 import SampleTable, read_table
from openpi_b1k.data.index.episodes import EpisodeIndex

TABLE_BYTES = 256 * 2**20
"""Of sample tables kept by one process; those used longest ago go first."""


@dataclasses.dataclass(frozen=True)
class VideoFrames:
    """One video file. Every call opens it anew, so threads may share one; for many calls, see EpisodeFrames."""

    path: pathlib.Path
    fps: int
    """Frames per second of the data set, which the file's frames must follow."""
    shape: tuple[int, int]
    """(height, width) that the data set declares."""

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        """Returns the frames of those numbers, in that order: uint8 [n, height, width, 3], RGB.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a frame is not in it or damaged, its size is not the declared one, or times are off the grid.
        """
        images = np.empty((len(numbers), *self.shape, 3), np.uint8)
        for i, image in self.each(numbers):
            images[i] = image
        return images

    def each(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (position in `numbers`, image) of every frame, decoding each run of neighbours once; see `read`."""
        for i, frame in self.decoded(numbers):
            yield i, frame.to_ndarray(format="rgb24")

    def decoded(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (position in `numbers`, frame in the video's own pixel format) of every frame; see `read`."""
        if len(numbers) and min(numbers) < 0:
            raise ValueError(f"frames of {self.path} are counted from 0; got {min(numbers)}")
        file = OpenFile(self.path)
        table = read_table(file, self.fps)
        order = np.argsort(numbers, kind="stable").tolist()
        places = itertools.groupby(order, key=lambda i: int(numbers[i]))
        wanted = {number: list(group) for number, group in places}
        with DecoderPool().lent(table.codec) as decoder:
            frames = Reader(file, table, decoder).frames(list(wanted), pause=False)
            for group, frame in zip(wanted.values(), frames, strict=True):
                check_shape(self.path, frame, self.shape)
                for i in group:
                    yield i, frame

    def count(self) -> int:
        """Returns how many frames the file shows, told by its sample table alone."""
        return int(np.count_nonzero(read_table(OpenFile(self.path), self.fps).numbers >= 0))


class OpenVideos:
    """Open files and the sample tables of the episodes in them. Threads may share one."""

    def __init__(self, fps: int, most_bytes: int = TABLE_BYTES) -> None:
        """Opens nothing yet; keeps at most `most_bytes` of tables, but always one."""
        self._fps = fps
        self._most_bytes = most_bytes
        self._files = OpenFiles()
        self._tables: collections.OrderedDict[tuple[pathlib.Path, int, int], SampleTable] = collections.OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, path: pathlib.Path, first: int, stop: int) -> tuple[OpenFile, SampleTable]:
        """Returns the file and the table of its frames [first, stop).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: its sample table cannot be read.
        """
        file, key = self._files.get(path), (path, first, stop)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return file, self._tables[key]
        table = read_table(file, self._fps).part(first, stop)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = table
                self._held_bytes += table.nbytes
            while self._held_bytes > self._most_bytes and len(self._tables) > 1:
                self._held_bytes -= self._tables.popitem(last=False)[1].nbytes
        return file, table


def check_shape(path: pathlib.Path, frame: av.VideoFrame, shape: tuple[int, int]) -> None:
    """Raises ValueError if a frame is not of (height, width) `shape`."""
    if (frame.height, frame.width) != shape:
        raise ValueError(
            f"{path} is {frame.height} x {frame.width} pixels, meta/info.json says {shape[0]} x {shape[1]}"
        )


def key_frame_distance(index: EpisodeIndex) -> int:
    """Returns the most frames from one key frame to the next in the first episode's first video; decodes nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its sample table cannot be read.
    """
    file = OpenFile(index.root / index.video_files[index.video_ids[0, 0]])
    first = int(index.first_frames[0, 0])
    table = read_table(file, index.fps).part(first, first + int(index.lengths[0]))
    if len(table.keys) == 1:
        return len(table.sizes)
    return int(np.diff(table.key_numbers).max())
