"""Video files: whether they are there, can be decoded, and show as many frames as their episodes have rows."""

import base64
import io
import math

import numpy as np
import PIL.Image

from openpi_b1k.config.data import Modality
from openpi_b1k.curation.contents import Contents
from openpi_b1k.curation.findings import Finding
from openpi_b1k.data.frames import depth
from openpi_b1k.data.frames.files import OpenFile
from openpi_b1k.data.frames.mp4 import read_table
from openpi_b1k.data.frames.video import VideoFrames

THUMBNAIL = 128
"""Height and width in pixels of example frames."""
BLOCK_FRAMES = 250


def audit_file(
    contents: Contents, v: int, file: str, rows: np.ndarray, *, decode_all: bool, with_example: bool
) -> tuple[list[Finding], dict[str, str] | None]:
    """Returns what is wrong with a video file, and one of its frames as {"caption", "jpeg" (base64)}.

    The container's table of frames is read, and the first and the last frame are decoded; or all are.

    Args:
        contents: of the data set.
        v: of the index's videos, which the file shows.
        file: relative to the root, and there.
        rows: of the index, whose episodes it shows, by first frame.
        decode_all: decode every frame.
        with_example: return a frame.
    """
    index, video = contents.index, contents.index.videos[v]
    firsts, lengths = index.first_frames[rows, v], index.lengths[rows]
    stops = firsts + lengths
    findings = [
        Finding("length mismatch", file, f"frames {a} to {b - 1} are of episode {index.numbers[row]} too", int(number))
        for number, row, a, b in zip(index.numbers[rows[1:]], rows[:-1], firsts[1:], stops[:-1], strict=True)
        if b > a
    ]
    frames = VideoFrames(contents.root / file, index.fps, (video.height, video.width))
    try:
        table = read_table(OpenFile(frames.path), index.fps)
        count = table.last_number + 1
        if frames.count() != count:
            findings.append(Finding("corrupt file", file, f"it shows {frames.count()} frames up to frame {count - 1}"))
        findings += _lengths(contents, file, rows, stops, count)
        numbers = np.arange(count) if decode_all else np.unique([0, min(count, stops.max()) - 1])
        example = _decode(frames, numbers.tolist(), video.modality, video.key)
    except (ValueError, OSError) as error:
        kind = "other image size" if "meta/info.json says" in str(error) else "corrupt file"
        return [*findings, Finding(kind, file, str(error))], None
    if not with_example or example is None:
        return findings, None
    return findings, {"caption": f"{video.camera} {video.modality}, {file}", "jpeg": _jpeg(example)}


def _lengths(contents: Contents, file: str, rows: np.ndarray, stops: np.ndarray, count: int) -> list[Finding]:
    index = contents.index
    findings = [
        Finding("length mismatch", file, f"{count} frames, its rows need {stop}", int(index.numbers[row]))
        for row, stop in zip(rows, stops, strict=True)
        if stop > count
    ]
    if contents.is_whole and count > stops.max():
        findings.append(Finding("longer video", file, f"{count} frames, its rows need {stops.max()}"))
    return findings


def _decode(frames: VideoFrames, numbers: list[int], modality: Modality, key: str) -> np.ndarray | None:
    """Returns the last of these frames as an image uint8 [h, w, 3]; raises ValueError if one cannot be decoded."""
    last = None
    for start in range(0, len(numbers), BLOCK_FRAMES):
        for _, frame in frames.decoded(numbers[start : start + BLOCK_FRAMES]):
            last = frame
    if last is None:
        return None
    if modality != "depth":
        return last.to_ndarray(format="rgb24")
    metres = depth.metres(depth.coding(key), last.format.name)[depth.luma(last)]
    grey = (255 * (1 - np.log1p(metres) / math.log1p(depth.FAR))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
