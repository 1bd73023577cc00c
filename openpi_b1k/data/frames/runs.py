"""A window of decoded pictures: runs of frames are decoded at once, by decoders that wait between one run and the next.

With key frames 250 apart, a frame by itself costs 125 decoded ones. A run costs what it holds: its decoder stands where
the run before ended. What a run's first sample does not need is kept until its own turn, once.
"""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from openpi_b1k.data.frames.decoding import Reader
from openpi_b1k.data.frames.pictures import Picture

logger = logging.getLogger(__name__)

READER_BYTES_PER_PIXEL = 16
"""Of a waiting decoder, as measured with HEVC as x265 makes it: six frames with their motion vectors; 8 MB at 720
pixels. FFmpeg keeps as many as were ever held at once, so who reads lets go of a frame before asking for the next."""

DROPPED_KEPT = 1024
"""Of the pictures dropped last, it is remembered which they were."""

Key = tuple[int, int]
"""(row, frame)"""
Place = tuple[int, int, int]
"""(row, video, number of the key frame whose run of packets a reader stands in)"""


@dataclasses.dataclass(frozen=True)
class WindowSize:
    """What a window holds at most; those put in longest ago go first."""

    picture_bytes: int = 500_000_000
    num_readers: int = 192
    """A reader is of one video."""


class Window:
    """Pictures by row and frame and waiting readers, up to a bound. Threads may share one.

    The bounds are two, so that pictures which nobody asks for, as of a run that a resumed training enters in its
    middle, make room for other pictures and not for readers.
    """

    def __init__(self, size: WindowSize, forget: Callable[[Reader], None]) -> None:
        """Holds nothing yet; `forget` is given a reader that is no longer kept."""
        self._size = size
        self._forget = forget
        self._pictures: collections.OrderedDict[Key, tuple[Picture, ...]] = collections.OrderedDict()
        self._readers: collections.OrderedDict[Place, Reader] = collections.OrderedDict()
        self._picture_bytes = 0
        self._dropped: collections.deque[Key] = collections.deque(maxlen=DROPPED_KEPT)
        self._lock = threading.Lock()
        self._is_told = False

    def take(self, row: int, frame: int) -> tuple[Picture, ...] | None:
        """Returns the pictures of a frame and forgets them; None where they are not kept."""
        with self._lock:
            pictures = self._pictures.pop((row, frame), None)
            if pictures is not None:
                self._picture_bytes -= _nbytes(pictures)
            elif not self._is_told and (row, frame) in self._dropped:
                self._tell()
            return pictures

    def put(self, row: int, frames: Sequence[int], pictures: Sequence[tuple[Picture, ...]]) -> None:
        """Keeps the pictures of frames."""
        with self._lock:
            for frame, kept in zip(frames, pictures, strict=True):
                old = self._pictures.pop((row, frame), ())
                self._pictures[row, frame] = kept
                self._picture_bytes += _nbytes(kept) - _nbytes(old)
            self._shrink()

    def take_reader(self, place: Place) -> Reader | None:
        """Returns the reader that stands there, for the caller alone; None where there is none."""
        with self._lock:
            return self._readers.pop(place, None)

    def put_reader(self, place: Place, reader: Reader) -> None:
        """Keeps a reader."""
        with self._lock:
            replaced = self._readers.pop(place, None)
            if replaced is not None:
                self._forget(replaced)
            self._readers[place] = reader
            self._shrink()

    def _shrink(self) -> None:
        while self._picture_bytes > self._size.picture_bytes and len(self._pictures) > 1:
            key, dropped = self._pictures.popitem(last=False)
            self._picture_bytes -= _nbytes(dropped)
            self._dropped.append(key)
        while len(self._readers) > self._size.num_readers:
            self._forget(self._readers.popitem(last=False)[1])

    def _tell(self) -> None:
        self._is_told = True
        logger.warning(
            "decoded frames were dropped before their turn, so they are decoded again: the window's %.1f GB for "
            "pictures are too small for the runs in use; raise --data.window-gb",
            self._size.picture_bytes / 1e9,
        )


def _nbytes(pictures: Sequence[Picture]) -> int:
    return sum(picture.nbytes for picture in pictures)
