"""Videos of the sample data: how frames, distances and instance numbers become pixels, and pixels files."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from openpi_b1k.sample.world import FPS

DEPTH_SHIFT, MAX_DEPTH = 3.5, 10.0


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What frames are given as, and how libx265 stores them."""

    options: dict[str, str]
    """`x265-params` decides GOP and B-frames."""
    pixel_format: str = "yuv420p"
    """Of the file."""
    frame_format: str = "rgb24"
    """Of the frames given: rgb24 is uint8 [h, w, 3], gray12le and gray16le are uint16 [h, w]."""


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """Distances as whole numbers on a logarithmic scale, finer nearby. Source: OmniGibson's `obs_utils.py`."""

    nearest: float
    """Metres that code 0 stands for; the last code stands for 10."""
    num_bits: int

    def encode(self, depth: np.ndarray) -> np.ndarray:
        """Returns the codes uint16 of distances in m."""
        low, high = np.log([self.nearest + DEPTH_SHIFT, MAX_DEPTH + DEPTH_SHIFT])
        last = 2**self.num_bits - 1
        position = (np.log(np.maximum(depth, 0.0) + DEPTH_SHIFT) - low) / (high - low)
        return np.clip(np.round(position * last), 0, last).astype(np.uint16)


def palette(num_colours: int) -> np.ndarray:
    """Returns the colours that stand for the instances of a video, by position in its list: uint8 [n, 3].

    Evenly spaced triplets, the last entry changing fastest. Source: OmniGibson's `obs_utils.py`.
    """
    steps = next(k for k in range(1, num_colours + 1) if k**3 >= num_colours)
    first, others = np.linspace(16, 235, steps), np.linspace(16, 240, steps)
    grid = np.stack(np.meshgrid(first, others, others, indexing="ij"), axis=-1)
    return grid.reshape(-1, 3)[:num_colours].astype(np.uint8)


def paint_instances(instances: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Returns the colours of instances, uint8 [..., 3]; `numbers` lists all that occur, in the palette's order."""
    positions = np.zeros(256, np.intp)
    positions[list(numbers)] = np.arange(len(numbers))
    return palette(len(numbers))[positions[instances]]


def encode_video(path: pathlib.Path, frames: Iterable[np.ndarray], size: int, encoding: Encoding) -> None:
    """Writes frames of `size` x `size` pixels as HEVC, one per 1/30 s.

    Args:
        path: the mp4; its directory is made.
        frames: in order.
        size: height and width in pixels, even.
        encoding: says what the frames are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # The cast: PyAV's annotations know only some encoders by name.
        stream = cast(VideoStream, container.add_stream("libx265", rate=FPS, options=encoding.options))
        stream.width = stream.height = size
        stream.pix_fmt = encoding.pixel_format
        stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format=encoding.frame_format)
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
