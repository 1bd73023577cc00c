"""One rollout that may become an episode, whoever recorded it: what is known of it, and what makes it unusable."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import av
import numpy as np
from av.error import FFmpegError

from openpi_b1k.data.frames.video import VideoFrames
from openpi_b1k.robots.layout import Layout
from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO, PROPRIO_IN_USE

FPS = 30

Columns = tuple[np.ndarray, np.ndarray]
"""proprio float32 [n, proprio size], actions float32 [n, 23]; row t is what was seen before action t, and action t."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """A recorded rollout. Its rows are read when they are needed: thousands of rollouts take gigabytes."""

    directory: pathlib.Path
    task: str
    """Its name."""
    prompt: str | None
    """What the policy was told; None where the recording does not say."""
    instance_id: int
    rollout_id: int
    success: bool
    q_score: float | None
    """The task's score at the end, in [0, 1]; None where the recording does not say."""
    videos: dict[str, pathlib.Path]
    """Camera -> mp4, frame t of which belongs to row t."""
    read_columns: Callable[[pathlib.Path], Columns]
    """From the directory to the rows; a function of a module, so that processes can be given it."""
    skipped_frames: int
    """Rows and frames at the beginning that are left out."""

    @property
    def name(self) -> str:
        """The rollout as the evaluator names it."""
        return f"{self.task}_{self.instance_id}_{self.rollout_id}"

    def columns(self) -> Columns:
        """Returns the rows that are kept."""
        proprio, actions = self.read_columns(self.directory)
        return proprio[self.skipped_frames :], actions[self.skipped_frames :]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What looking into an episode's files told."""

    length: int
    """Rows that are kept."""
    proprio_size: int
    image_sizes: tuple[tuple[str, int], ...]
    """(camera, height and width in pixels)"""
    digest: str
    """Of the rows that are kept: a rollout that lies in two places has it twice."""


def look_into(episode: Episode) -> Facts:
    """Returns what an episode's files hold, having read its rows and decoded each video's first and last frame.

    Raises:
        FileNotFoundError: a video is missing.
        ValueError: rows, vectors or videos are not those of a whole rollout of the R1 Pro.
    """
    proprio, actions = episode.read_columns(episode.directory)
    layout = proprio_layout(proprio)
    if actions.shape != (len(proprio), ACTION.size):
        raise ValueError(f"actions must be [{len(proprio)}, {ACTION.size}], as there are states; got {actions.shape}")
    if len(proprio) <= episode.skipped_frames:
        raise ValueError(f"it has {len(proprio)} rows, of which the first {episode.skipped_frames} are to be left out")
    in_use = [proprio[:, layout.slice(name)] for name in PROPRIO_IN_USE.names]
    if not all(np.isfinite(values).all() for values in (actions, *in_use)):
        raise ValueError("a state or an action is NaN or infinite")
    sizes = tuple((camera.name, check_video(episode.videos[camera.name], len(proprio))) for camera in CAMERAS)
    kept = [np.ascontiguousarray(rows, np.float32).tobytes() for rows in episode.columns()]
    digest = hashlib.sha256(b"".join(kept)).hexdigest()
    return Facts(len(proprio) - episode.skipped_frames, proprio.shape[1], sizes, digest)


def proprio_layout(proprio: np.ndarray) -> Layout:
    """Returns what the entries of proprio [n, p] mean, told by their number.

    Raises:
        ValueError: neither year's robot sends so many.
    """
    layout = next((known for known in PROPRIO.values() if proprio.ndim == 2 and proprio.shape[1] == known.size), None)
    if layout is None:
        known = " or ".join(f"{known.size} ({year})" for year, known in PROPRIO.items())
        raise ValueError(f"states must be [n, {known}]; got {proprio.shape}")
    return layout


def check_video(path: pathlib.Path, num_rows: int) -> int:
    """Returns the size of a square video in pixels, if it has a frame for every row.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it cannot be decoded, is too short, not square, or not of 30 frames a second.
    """
    size = image_size(path)
    video = VideoFrames(path, FPS, (size, size))
    if video.count() < num_rows:
        raise ValueError(f"{path.name} has {video.count()} frames, but there are {num_rows} rows")
    video.read((0, num_rows - 1))
    return size


def image_size(path: pathlib.Path) -> int:
    """Returns the height and width of a video's frames, which must be equal; see `check_video` for what is raised."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing")
    try:
        with av.open(str(path)) as container:
            (stream,) = container.streams.video
            shape = (stream.height, stream.width)
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"{path.name} is no video: {error}") from error
    if shape[0] != shape[1]:
        raise ValueError(f"{path.name} must be square; it is {shape[0]} x {shape[1]} pixels")
    return shape[0]
