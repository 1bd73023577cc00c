"""One video of a data set, written anew at the model's size with a short GOP, and checked against its source.

RGB is resized as the pipeline would (Pillow's bilinear), so a model sees the same up to the encoder's loss. Depth and
segmentation take the nearest pixel. Depth keeps the codes of its generation; what a 2025 file holds in another pixel
format is brought to 12 bits, whose step is no wider than that of any format those files are known to have. A
segmentation frame is decoded to places in its palette, and the same palette's exact colours are written.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from av.video.frame import VideoFrame

from openpi_b1k.config.data import Modality
from openpi_b1k.curation.encoders import each_frame, encoder_of, gray12_frame, write_video
from openpi_b1k.data.frames import depth, segmentation
from openpi_b1k.data.index.episodes import Video
from openpi_b1k.transforms.images import resize_with_pad

NUM_COMPARED = 8
"""RGB frames of each file that are compared with their resized source; of depth and segmentation all are."""
LEAST_PSNR = 20.0
"""In dB. Generated footage, whose grain no encoder keeps, has 33; another frame has about 12."""
PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a data set is prepared; written beside it."""

    image_size: int = 224
    """Height and width in pixels: the model's."""
    key_frame_distance: int = 8
    crf: int = 20
    """Quality of RGB, as libx264 counts it: 0 is lossless, 6 more halve the size."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 2:
            raise ValueError(f"image_size must be even and at least 32; got {self.image_size}")
        if self.key_frame_distance < 1:
            raise ValueError(f"key_frame_distance must be at least 1; got {self.key_frame_distance}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be in [0, 51]; got {self.crf}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One video file to write."""

    source: pathlib.Path
    target: pathlib.Path
    name: str
    """Its path in the data set."""
    video: Video
    """What it shows, as the source declares it."""
    fps: int
    num_frames: int
    """That its episodes need; the file may hold more."""
    metainfo: pathlib.Path | None = None
    """The episode's meta file, which tells the instances of a segmentation video."""

    @property
    def modality(self) -> Modality:
        """Of the video."""
        return self.video.modality


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a job."""

    name: str
    num_frames: int
    source_bytes: int
    target_bytes: int
    psnr: float
    """In dB, over the frames compared; infinite where they are equal."""


def recode(job: Job, settings: Settings) -> Result:
    """Writes the job's target and returns what was measured. The target appears when it is whole and checked.

    Raises:
        FileNotFoundError: the source, or its list of ids, is missing.
        ValueError: the source cannot be decoded or is shorter than its episodes, or the copy differs from it.
    """
    job.target.parent.mkdir(parents=True, exist_ok=True)
    partial = job.target.with_name(f"{job.target.name}{PARTIAL}-{os.getpid()}")
    expected = _Expected(job, settings.image_size)
    try:
        encoder = encoder_of(job.modality, settings.key_frame_distance, settings.crf)
        frames = _resized(job, settings.image_size, expected)
        count = write_video(partial, frames, encoder, settings.image_size, job.fps)
        if count < job.num_frames:
            raise ValueError(f"{job.source} has {count} frames, but its episodes have {job.num_frames} rows")
        psnr = expected.compare(partial, count)
        partial.replace(job.target)
    finally:
        partial.unlink(missing_ok=True)
    return Result(job.name, count, job.source.stat().st_size, job.target.stat().st_size, psnr)


def sample_size(job: Job, settings: Settings, num_frames: int, path: pathlib.Path) -> tuple[int, int]:
    """Returns (frames, bytes) of a video of the job's first frames, written to `path` to tell what all will take."""
    frames = itertools.islice(_resized(job, settings.image_size, None), num_frames)
    encoder = encoder_of(job.modality, settings.key_frame_distance, settings.crf)
    count = write_video(path, frames, encoder, settings.image_size, job.fps)
    return count, path.stat().st_size


class _Expected:
    """What the frames of a job's target must be: some of them whole where it is lossy, else a checksum of each."""

    def __init__(self, job: Job, size: int) -> None:
        self._job = job
        self._shape = (size, size)
        self._compared = set(np.linspace(0, max(job.num_frames - 1, 0), NUM_COMPARED).astype(int).tolist())
        self._kept: dict[int, np.ndarray] = {}
        self._sums: list[int] = []

    def add(self, values: np.ndarray) -> None:
        if self._job.modality == "rgb" and len(self._sums) in self._compared:
            self._kept[len(self._sums)] = values
        self._sums.append(zlib.crc32(values.tobytes()))

    def compare(self, path: pathlib.Path, count: int) -> float:
        """Returns the PSNR of a written file, having decoded all of it.

        Raises:
            ValueError: it has another number of frames, or differs: beyond LEAST_PSNR, or at all where it is lossless.
        """
        job, errors, number = self._job, [], -1
        for number, frame in enumerate(each_frame(path, job.fps, self._shape)):
            if job.modality == "rgb":
                if number in self._kept:
                    written = frame.to_ndarray(format="rgb24").astype(np.float64)
                    errors.append(np.mean((written - self._kept[number]) ** 2))
                continue
            values = depth.luma(frame) if job.modality == "depth" else frame.to_ndarray(format="rgb24")
            if zlib.crc32(values.tobytes()) != self._sums[number]:
                raise ValueError(f"frame {number} of the copy of {job.source} differs, though its encoder is lossless")
        if number + 1 != count:
            raise ValueError(f"the copy of {job.source} has {number + 1} of {count} frames: is the disk full?")
        psnr = 10 * math.log10(255**2 / np.mean(errors)) if any(errors) else math.inf
        if psnr < LEAST_PSNR:
            raise ValueError(
                f"the copy of {job.source} differs from it: PSNR {psnr:.1f} dB, below {LEAST_PSNR}; lower --crf"
            )
        return psnr


def _resized(job: Job, size: int, expected: _Expected | None) -> Iterator[VideoFrame]:
    """Yields the source's frames at the new size, and tells `expected` of each."""
    values_of = _values(job, size)
    for frame in each_frame(job.source, job.fps, (job.video.height, job.video.width)):
        values = values_of(frame)
        if expected is not None:
            expected.add(values)
        yield gray12_frame(values) if job.modality == "depth" else VideoFrame.from_ndarray(values, format="rgb24")


def _values(job: Job, size: int) -> Callable[[VideoFrame], np.ndarray]:
    """Returns what makes the values to write, rgb uint8 [size, size, 3] or codes uint16 [size, size], of a frame."""
    match job.modality:
        case "rgb":
            return lambda frame: resize_with_pad(frame.to_ndarray(format="rgb24"), size)
        case "depth":
            coding = depth.coding(job.video.key)
            return lambda frame: codes_in_12_bits(coding, frame.format.name)[nearest(depth.luma(frame), size)]
        case "segmentation":
            if job.metainfo is None:
                raise ValueError(f"nothing tells what the colours of {job.source} mean; leave segmentation out")
            count = len(segmentation.read_instances(job.metainfo, job.video.camera).ids)
            colours = segmentation.palette(count)
            return lambda frame: colours[segmentation.positions(nearest(frame.to_ndarray(format="rgb24"), size), count)]


@functools.cache
def codes_in_12_bits(coding: depth.DepthCoding, pixel_format: str) -> np.ndarray:
    """Returns the gray12le value of every value a plane can hold, uint16 [2**bits], that means the nearest depth."""
    if pixel_format == "gray12le":
        return np.arange(4096, dtype=np.uint16)
    wanted = depth.encode(coding, depth.metres(coding, pixel_format)).astype(np.int64)
    levels = depth.encode(coding, depth.metres(coding, "gray12le")).astype(np.int64)
    levels = levels[: int(levels.argmax()) + 1]  # beyond, all mean the farthest
    right = np.clip(np.searchsorted(levels, wanted), 1, len(levels) - 1)
    return np.where(wanted - levels[right - 1] < levels[right] - wanted, right - 1, right).astype(np.uint16)


def nearest(image: np.ndarray, size: int) -> np.ndarray:
    """Returns [size, size, ...]: of each pixel's area the one at its centre, rounded down; image [side, side, ...].

    Raises:
        ValueError: the image is not square; depth and labels of a padded image would have no meaning at its edges.
    """
    height, width = image.shape[:2]
    if height != width:
        raise ValueError(f"depth and segmentation must be square; got {height} x {width} pixels")
    places = ((np.arange(size) + 0.5) * height / size).astype(int)
    return image[np.ix_(places, places)]
