"""How prepared videos are encoded, and all frames of a video.

RGB is H.264 because random access is bound by the decoder: generated footage at 224 px takes 0.12 ms a frame with
libx264's `fastdecode` at CRF 20, 0.29 ms with libx265 at the same PSNR (one core; 1.9 against 1.3 kB a frame).
Depth and segmentation are lossless, as codes and palette colours must come back exactly. libx265 is lossless only
without predicted frames (measured with 4.1 on sharp synthetic planes: up to half of the predicted frames differ, of
key frames none), so every depth frame is a key frame, which also makes it four times as cheap to reach.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from openpi_b1k.config.data import Modality
from openpi_b1k.data.frames.video import VideoFrames


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A codec with its settings."""

    codec: str
    pixel_format: str
    options: tuple[tuple[str, str], ...]


def encoder_of(modality: Modality, key_frame_distance: int, crf: int) -> Encoder:
    """Returns how videos of a modality are encoded; one thread each, because files are made by many processes."""
    keys = f"keyint={key_frame_distance}:min-keyint={key_frame_distance}:scenecut=0:bframes=0:open-gop=0:threads=1"
    match modality:
        case "rgb":
            options = {"crf": str(crf), "preset": "fast", "tune": "fastdecode", "x264-params": keys}
            return Encoder("libx264", "yuv420p", tuple(options.items()))
        case "segmentation":
            options = {"qp": "0", "preset": "fast", "x264-params": keys}
            return Encoder("libx264rgb", "rgb24", tuple(options.items()))
        case "depth":
            options = "log-level=none:lossless=1:keyint=1:min-keyint=1:pools=none:frame-threads=1"
            return Encoder("libx265", "gray12le", (("preset", "fast"), ("x265-params", options)))


def write_video(path: pathlib.Path, frames: Iterable[VideoFrame], encoder: Encoder, size: int, fps: int) -> int:
    """Writes frames of `size` x `size` pixels, one per 1/fps s, as an mp4, and returns their number."""
    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        # The cast: PyAV's annotations know only some encoders by name.
        stream = cast(VideoStream, container.add_stream(encoder.codec, rate=fps, options=dict(encoder.options)))
        stream.width = stream.height = size
        stream.pix_fmt = encoder.pixel_format
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        for frame in frames:
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count


def each_frame(path: pathlib.Path, fps: int, shape: tuple[int, int]) -> Iterator[VideoFrame]:
    """Yields all frames of a video in order of presentation, read as training reads them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, is damaged, or its frames are off the grid of `fps` or not of that shape.
    """
    video = VideoFrames(path, fps, shape)
    for _, frame in video.decoded(range(video.count())):
        yield frame


def gray12_frame(values: np.ndarray) -> VideoFrame:
    """Returns a gray12le frame of uint16 [h, w] values below 4096."""
    height, width = values.shape
    frame = VideoFrame(width, height, "gray12le")
    lines = np.zeros((height, frame.planes[0].line_size // 2), "<u2")
    lines[:, :width] = values
    frame.planes[0].update(lines.tobytes())
    return frame
