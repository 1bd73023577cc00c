"""Videos of rollouts: what the cameras saw, as H.264; and the composite of all three that the evaluators write.

    +-------------+--------------------+
    | left wrist  |                    |     224 x 224, 448 x 448 and 224 x 224 pixels: 448 x 672 in all.
    +-------------+       head         |
    | right wrist |                    |
    +-------------+--------------------+

Source of the layout: BEHAVIOR-1K, OmniGibson/omnigibson/eval/evaluator.py.
"""

import contextlib
import pathlib
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from openpi_b1k.robots.r1pro import CAMERAS

FPS = 30
WRIST_SIZE, HEAD_SIZE = 224, 448
OPTIONS = {"crf": "16", "preset": "veryfast", "g": "30"}
"""Of libx264: hardly any loss, quick, and a frame to start decoding from every second."""


class VideoWriter:
    """Writes frames to an mp4 file one by one; the first one's size is the video's."""

    def __init__(self, path: pathlib.Path) -> None:
        """Makes the file's directory; the file begins with the first frame.

        Args:
            path: of the mp4.
        """
        self._path = path
        self._opened: tuple[OutputContainer, VideoStream] | None = None
        self.num_frames = 0
        """Added so far."""
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 [height, width, 3] RGB.

        Raises:
            ValueError: its size is odd, which this coding of colours cannot hold, or is not the first frame's.
        """
        if self._opened is None:
            self._opened = _open(self._path, frame)
        container, stream = self._opened
        if frame.shape != (stream.height, stream.width, 3):
            raise ValueError(
                f"{self._path.name} is of {stream.height} x {stream.width} pixels; frame {self.num_frames} is "
                f"{list(frame.shape)}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.num_frames
        container.mux(stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Writes what is left and closes the file. May be called twice."""
        if self._opened is not None:
            container, stream = self._opened
            container.mux(stream.encode())
            container.close()
        self._opened = None


def camera_images(observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {camera: RGB uint8 [height, width, 3]} of one environment's observation, the evaluator's keys.

    Raises:
        KeyError: a camera is missing.
    """
    return {camera.name: observation[f"{camera.simulator_name}::rgb"][..., :3] for camera in CAMERAS}


def composite(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the three cameras' images side by side as above, uint8 [448, 672, 3]."""
    wrists = [_resized(images[name], WRIST_SIZE) for name in ("left_wrist", "right_wrist")]
    return np.concatenate([np.concatenate(wrists, axis=0), _resized(images["head"], HEAD_SIZE)], axis=1)


def count_frames(path: pathlib.Path) -> int:
    """Returns how many frames a video has, from its tables alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no video at {path}")
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise ValueError(f"{path} is no video that can be read: {error}") from error
    with contextlib.closing(container):
        if not container.streams.video:
            raise ValueError(f"{path} holds no video")
        return container.streams.video[0].frames


def _open(path: pathlib.Path, frame: np.ndarray) -> tuple[OutputContainer, VideoStream]:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape[0] % 2 or frame.shape[1] % 2:
        raise ValueError(
            f"{path.name}: a frame must be uint8 [height, width, 3] with even height and width; got {frame.dtype} "
            f"{list(frame.shape)}"
        )
    container = av.open(str(path), "w", format="mp4")
    # The cast: PyAV's annotations know only some encoders by name.
    stream = cast(VideoStream, container.add_stream("libx264", rate=FPS, options=OPTIONS))
    stream.height, stream.width = frame.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # many videos are written at once
    stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
    return container, stream


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return picture.reformat(width=size, height=size, format="rgb24", interpolation="BILINEAR").to_ndarray()
