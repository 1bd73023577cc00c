"""Decoded frames as RGB at the model's size, without the copies between FFmpeg and Pillow.

Pillow keeps RGB in four bytes per pixel, the last of which means nothing. FFmpeg can write that layout, and the Arrow
interface hands its memory to Pillow as it is. Colours are the same with and without the fourth byte, so a picture is
bit for bit what `to_ndarray("rgb24")` and `resize_with_pad` give, for a tenth less of the time both take.
"""

import threading

import av
import numpy as np
import PIL.Image
import pyarrow as pa
from av.video.reformatter import VideoReformatter

from openpi_b1k.transforms.images import resize_with_pad

BYTES = 4
"""Per pixel in Pillow's memory."""
BLOCK = 16
"""Pixels that FFmpeg converts at once. At some other widths, such as 50, it writes four-byte pixels past the end."""
SHARED_FORMATS = ("yuv420p", "yuvj420p")
"""Those whose conversion to three and to four bytes is known to give the same colours; other videos are copied."""


class RgbFrames:
    """Makes RGB pictures of decoded frames. Threads may share one; each keeps FFmpeg's conversion tables, per size."""

    def __init__(self, size: int | None) -> None:
        """Converts nothing yet; `size` is the pictures' height and width in pixels, None leaves frames as they are."""
        self._size = size
        self._local = threading.local()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns the picture of a frame: uint8 [size, size, 3], scaled and centred as `resize_with_pad` does."""
        size, height, width = self._size, frame.height, frame.width
        converter = self._converter(height, width)
        if size is not None and height == width != size and not width % BLOCK and frame.format.name in SHARED_FORMATS:
            plane = converter.reformat(frame, format="rgba").planes[0]
            if plane.line_size == width * BYTES:
                pixels = pa.Array.from_buffers(pa.uint8(), height * width * BYTES, [None, pa.py_buffer(plane)])
                image = PIL.Image.fromarrow(pa.FixedSizeListArray.from_arrays(pixels, BYTES), "RGB", (width, height))
                return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR))
        image = converter.reformat(frame, format="rgb24").to_ndarray()
        return image if size is None else resize_with_pad(image, size)

    def _converter(self, height: int, width: int) -> VideoReformatter:
        """Returns this thread's converter of frames of a size."""
        converters = self._local.__dict__.setdefault("converters", {})
        if (height, width) not in converters:
            converters[height, width] = VideoReformatter()
        return converters[height, width]
