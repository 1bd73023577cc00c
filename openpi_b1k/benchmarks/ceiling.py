"""The most that decoding allows: a loader's frames in its order, decoded and resized by plain PyAV and nothing else.

As many processes as the loader has workers, each with the frames of one worker; which ones they are is worked out
before the clock starts. Containers stay open. A run of frames that the order asks of a span is decoded at once, and
the decoder waits at its end for the span's next run. Nothing is batched, and of the transforms only the resize is done.
"""

import collections
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from multiprocessing.connection import Connection

import av
import numpy as np
from av.container import InputContainer

from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.transforms.images import resize_with_pad

MOST_WAITING = 1500
"""Decoders that wait at a run's end, in a process: more than any window of the benchmark opens."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A sample's frame."""

    row: int
    """Of the episode."""
    frame: int
    """In the episode."""
    run: tuple[int, ...]
    """Frames of the episode, ascending, that are decoded together; this one's too."""


def wanted_frames(mixture: Mixture, index: EpisodeIndex, rows: Rows, steps: range, worker: int) -> list[Wanted]:
    """Returns what a worker of the loader decodes for some steps, in its order; the mixture has one source."""
    wanted = []
    for step in steps:
        for n in rows.share(step, worker)[1].tolist():
            _, i, run = mixture.address(n)
            row, frame = index.locate(i)
            wanted.append(Wanted(row, frame, (frame,) if run is None else tuple((run - i + frame).tolist())))
    return wanted


class Videos:
    """Open containers of an index's videos, and the decoders that wait in them."""

    def __init__(self, index: EpisodeIndex, image_size: int) -> None:
        """Opens nothing yet.

        Args:
            index: with RGB alone.
            image_size: that frames are brought to.
        """
        self._index = index
        self._image_size = image_size
        self._open: dict[int, InputContainer] = {}
        self._waiting: collections.OrderedDict[tuple[int, int, int], Iterator[av.VideoFrame]] = (
            collections.OrderedDict()
        )
        self._decoded: dict[tuple[int, int], list[np.ndarray]] = {}

    def read(self, wanted: Wanted) -> list[np.ndarray]:
        """Returns the frame of each video at the model's size: uint8 [size, size, 3] each."""
        if len(wanted.run) == 1:
            return [self._read_one(wanted, place) for place in range(len(self._index.videos))]
        if (wanted.row, wanted.frame) not in self._decoded:
            for place in range(len(self._index.videos)):
                for frame, picture in zip(wanted.run, self._read_run(wanted, place), strict=True):
                    self._decoded.setdefault((wanted.row, frame), []).append(picture)
        return self._decoded.pop((wanted.row, wanted.frame))

    def _read_one(self, wanted: Wanted, place: int) -> np.ndarray:
        video = int(self._index.video_ids[wanted.row, place])
        if video not in self._open:
            self._open[video] = self._container(video)
        return self._resized(next(self._from(self._open[video], self._number(wanted.row, place, wanted.frame))))

    def _read_run(self, wanted: Wanted, place: int) -> Iterator[np.ndarray]:
        """Yields a run's pictures; the decoder is found by the frame it would show next."""
        video = int(self._index.video_ids[wanted.row, place])
        frames = self._waiting.pop((wanted.row, place, wanted.run[0]), None)
        if frames is None:
            frames = self._from(self._container(video), self._number(wanted.row, place, wanted.run[0]))
        expected = wanted.run[0]
        for frame in wanted.run:
            for _ in range(frame - expected):
                next(frames)
            expected = frame + 1
            yield self._resized(next(frames))
        self._waiting[wanted.row, place, expected] = frames
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    def _from(self, container: InputContainer, number: int) -> Iterator[av.VideoFrame]:
        """Yields frames from that number on."""
        stream = container.streams.video[0]
        tick = 1 / (Fraction(stream.time_base or 1) * self._index.fps)
        target = (stream.start_time or 0) + round(number * tick)
        container.seek(target, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= target:
                yield frame

    def _container(self, video: int) -> InputContainer:
        container = av.open(str(self._index.root / self._index.video_files[video]))
        container.streams.video[0].codec_context.thread_count = 1  # as many processes as cores decode
        return container

    def _number(self, row: int, place: int, frame: int) -> int:
        return int(self._index.first_frames[row, place]) + frame

    def _resized(self, frame: av.VideoFrame) -> np.ndarray:
        return resize_with_pad(frame.to_ndarray(format="rgb24"), self._image_size)


class Ceiling:
    """Processes that decode a loader's frames when told to. Use it in a `with` statement."""

    def __init__(self, mixture: Mixture, index: EpisodeIndex, rows: Rows, image_size: int) -> None:
        """Starts a process for each of the loader's workers."""
        context = multiprocessing.get_context("spawn")
        self._ends, self._processes = [], []
        for worker in range(rows.num_workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, mixture, index, rows, worker, image_size)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._ends.append(ours)
            self._processes.append(process)

    def seconds(self, steps: range) -> float:
        """Returns how long the processes take for the frames of some steps, until the last one is done."""
        self._ask(steps)
        start = time.perf_counter()
        self._ask(None)
        return time.perf_counter() - start

    def _ask(self, question: range | None) -> None:
        for end in self._ends:
            end.send(question)
        for end in self._ends:
            end.recv()

    def __enter__(self) -> "Ceiling":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the processes."""
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.join()


def _serve(end: Connection, mixture: Mixture, index: EpisodeIndex, rows: Rows, worker: int, image_size: int) -> None:
    """Answers each range of steps when its frames are known, and each None when they are decoded."""
    videos = Videos(index, image_size)
    wanted: Sequence[Wanted] = ()
    while True:
        try:
            steps = end.recv()
        except EOFError:
            return
        if steps is None:
            for each in wanted:
                videos.read(each)
        else:
            wanted = wanted_frames(mixture, index, rows, steps, worker)
        end.send(len(wanted))
