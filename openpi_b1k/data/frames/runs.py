"""A window of decoded pictures: runs of frames are decoded at once, by decoders that wait between one run and the next.

With key frames 250 apart, a frame by itself costs 125 decoded ones. A run costs what it holds: its decoder stands where
the run before ended. What a run's first sample does not need is kept until its own turn, once.
"""

import collections
import logging
import threading
from collections.abc import Callable, Sequence

from openpi_b1k.data.frames.decoding import Reader
from openpi_b1k.data.frames.pictures import Picture

logger = logging.getLogger(__name__)

READER_BYTES_PER_PIXEL = 18
"""Of a waiting decoder, about: frames in flight and their motion vectors; 9 MB for HEVC with B-frames at 720 pixels."""

Key = tuple[int, int]
"""(row, frame)"""
Place = tuple[int, int, int]
"""(row, video, number of the key frame whose run of packets a reader stands in)"""


class Window:
    """Pictures by row and frame and waiting readers, up to a bound. Threads may share one."""

    def __init__(self, most_bytes: int, reader_bytes: int, forget: Callable[[Reader], None]) -> None:
        """Holds nothing yet.

        Args:
            most_bytes: of pictures and readers together; those put in longest ago go first.
            reader_bytes: of a reader, about.
            forget: is given a reader that is no longer kept.
        """
        self._most_bytes = most_bytes
        self._reader_bytes = reader_bytes
        self._forget = forget
        self._pictures: collections.OrderedDict[Key, tuple[Picture, ...]] = collections.OrderedDict()
        self._readers: collections.OrderedDict[Place, Reader] = collections.OrderedDict()
        self._picture_bytes = 0
        self._lock = threading.Lock()
        self._is_told = False

    @property
    def nbytes(self) -> int:
        """Memory held, about."""
        return self._picture_bytes + self._reader_bytes * len(self._readers)

    def take(self, row: int, frame: int) -> tuple[Picture, ...] | None:
        """Returns the pictures of a frame and forgets them; None where they are not kept."""
        with self._lock:
            pictures = self._pictures.pop((row, frame), None)
            if pictures is not None:
                self._picture_bytes -= _nbytes(pictures)
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
        while self.nbytes > self._most_bytes and (self._readers or len(self._pictures) > 1):
            if self._picture_bytes * 2 > self._most_bytes or not self._readers:
                _, dropped = self._pictures.popitem(last=False)
                self._picture_bytes -= _nbytes(dropped)
                self._tell()
            else:
                self._forget(self._readers.popitem(last=False)[1])

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            logger.warning(
                "decoded frames were dropped before their turn, so they are decoded again: the window of %.1f GB is "
                "too small for the runs in use; raise --data.window-gb",
                self._most_bytes / 1e9,
            )


def _nbytes(pictures: Sequence[Picture]) -> int:
    return sum(picture.nbytes for picture in pictures)
