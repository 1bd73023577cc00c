"""Frames of a video by number, whatever its codec, key frames, B-frames and start offset.

A frame's number is its presentation time on the data set's grid of frames per second, counted from the stream's start
and computed in integers and fractions. Times in seconds never decide which frame is meant.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

GRID_TOLERANCE = Fraction(1, 4)
"""How far off the grid a frame may lie, in frames: containers round times, another frame rate is far off."""
LONGEST_SKIP = 32
"""Frames decoded in vain to reach the next one wanted, before seeking is tried instead."""


@dataclasses.dataclass(frozen=True)
class VideoFrames:
    """One video file. Every call opens it anew, so threads may share one."""

    path: pathlib.Path
    fps: int
    """Frames per second of the data set, which the file's frames must follow."""
    shape: tuple[int, int]
    """(height, width) that the data set declares."""

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        """Returns the frames of those numbers, in that order: uint8 [n, height, width, 3], RGB.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a frame is not in it, its size is not the declared one, or its times are off the grid.
        """
        images = np.empty((len(numbers), *self.shape, 3), np.uint8)
        for i, image in self.each(numbers):
            images[i] = image
        return images

    def each(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (position in `numbers`, image) of every frame, decoding each run of neighbours once; see `read`."""
        if not self.path.is_file():
            raise FileNotFoundError(f"no video {self.path}; download it, or choose other tasks with --data.tasks")
        if len(numbers) and min(numbers) < 0:
            raise ValueError(f"frames of {self.path} are counted from 0; got {min(numbers)}")
        with av.open(str(self.path)) as container:
            if not container.streams.video:
                raise ValueError(f"{self.path} holds no video")
            decoder = _Decoder(self.path, self.fps, container, container.streams.video[0])
            order = np.argsort(numbers, kind="stable").tolist()
            for i, frame in zip(order, decoder.frames([int(numbers[i]) for i in order]), strict=True):
                yield i, self._image(frame)

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        if (frame.height, frame.width) != self.shape:
            height, width = self.shape
            raise ValueError(
                f"{self.path} is {frame.height} x {frame.width} pixels, meta/info.json says {height} x {width}"
            )
        return frame.to_ndarray(format="rgb24")


class _Decoder:
    """An open file and where its frames are."""

    def __init__(self, path: pathlib.Path, fps: int, container: InputContainer, stream: VideoStream) -> None:
        if stream.time_base is None:
            raise ValueError(f"{path} does not say in which unit its times are")
        self._path = path
        self._fps = fps
        self._container = container
        self._stream = stream
        self._origin = stream.start_time or 0
        self._frames_per_tick = stream.time_base * fps
        stream.codec_context.thread_count = 1  # a data set is read by many processes at once

    def frames(self, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Yields the frames of ascending numbers."""
        held, frame = -1, None
        decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
        for wanted in numbers:
            if frame is None or wanted > held + LONGEST_SKIP:
                held, decoded = -1, self._decode(wanted)
            while held < wanted:
                previous = held
                try:
                    held, frame = next(decoded)
                except StopIteration:
                    raise ValueError(
                        f"{self._path} has no frame {wanted}, its last is {previous}: the video is shorter than the "
                        "rows it belongs to; download it again, or choose other tasks with --data.tasks"
                    ) from None
                if held > wanted:
                    raise ValueError(f"{self._path} has no frame {wanted}: frame {held} follows {previous}")
            if frame is not None:
                yield frame

    def _decode(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (number, frame) in order of presentation, from a key frame at or before frame `first`."""
        try:
            for packet in self._packets(first):
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        yield self._number(frame.pts), frame
        except FFmpegError as error:
            raise ValueError(f"{self._path} cannot be decoded near frame {first}: {error}") from error

    def _packets(self, first: int) -> Iterator[av.Packet]:
        """Yields packets from the last key frame that is presented at or before frame `first`.

        Seeking in MP4 compares decoding times, which B-frames put before presentation times: seeking to frame 248 may
        land on key frame 250. Frames that precede it then cannot be decoded, so the key frame before it is taken.
        """
        target = self._origin + round(first / self._frames_per_tick)
        earliest = None
        while True:
            self._container.seek(target, stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
            start = next(packets)
            if start.pts is None or start.dts is None or self._number(start.pts) <= first:
                break
            if earliest is not None and start.dts >= earliest:
                break  # nothing lies before it
            earliest = start.dts
            target = start.dts - 1
        yield start
        yield from packets

    def _number(self, pts: int | None) -> int:
        """Returns the number of the frame presented at `pts`."""
        if pts is None:
            raise ValueError(f"{self._path} has a frame without a presentation time")
        position = (pts - self._origin) * self._frames_per_tick
        number = round(position)
        if abs(position - number) > GRID_TOLERANCE:
            raise ValueError(
                f"{self._path} shows a frame {float(position):.2f} frames after its start, but the data set has "
                f"{self._fps} frames per second; the file says {self._stream.average_rate}"
            )
        return number
