"""Depth videos: logarithmic codes in the luma plane, and what they mean in metres.

    code = round((ln(d + 3.5) - ln(near + 3.5)) / (ln(10 + 3.5) - ln(near + 3.5)) * top)       d in metres, [near, 10]

| data | near | top   | stored as   | levels left | largest error: codes | at 1 m | at 9 m |
| ---- | ---- | ----- | ----------- | ----------- | -------------------- | ------ | ------ |
| 2025 | 0    | 16383 | gray12le    | 1025        | 15                   | 5 mm   | 13 mm  |
| 2025 | 0    | 16383 | yuv420p12le | 880         | 10                   | 4 mm   | 11 mm  |
| 2025 | 0    | 16383 | yuv420p10le | 221         | 38                   | 15 mm  | 40 mm  |
| 2026 | 0.01 | 4095  | gray12le    | 4096        | 0.5                  | 1 mm   | 3 mm   |

In 2025 the codes entered the encoder as 16-bit grey, of which they fill a quarter, so the pixel format decides how many
of the 16384 levels are left. Which one the public files have is not known: the file says it, and each is read here.
yuv420p formats hold a limited range, black is 16 and white 235 of 256, and FFmpeg up to 7.1, which wrote them, maps
255/256 of the 16-bit range to it; so it is undone here, whatever FFmpeg reads the file (version 8 maps the whole range,
and its own conversion reads such files up to 64 codes too far). In 2026 the plane is the code.
Source: `quantize_depth`, `dequantize_depth` of OmniGibson's `learning/utils/obs_utils.py` (2025) and
`envs/lerobot_data_wrapper.py` (2026); errors computed over all codes, encoded with FFmpeg 7.1.
"""

import dataclasses
import functools

import av
import numpy as np

SHIFT = 3.5
FAR = 10.0
LUMA_BLACK, LUMA_WHITE = 16, 235
"""Of limited range, in 8 bits."""
SCALED = 65280
"""What FFmpeg up to 7.1 takes for white in 16-bit grey."""
FORMATS = {
    "gray10le": (10, False), "gray12le": (12, False), "gray14le": (14, False), "gray16le": (16, False),
    "yuv420p10le": (10, True), "yuv420p12le": (12, True),
}  # fmt: skip
"""Pixel format -> (bits, whether the range is limited)."""


@dataclasses.dataclass(frozen=True)
class DepthCoding:
    """How a data set codes depth."""

    near: float
    """Metres; nothing is nearer."""
    top: int
    """The code of 10 m."""
    is_scaled: bool
    """Codes went through 16-bit grey, so what a plane holds is scaled to its bits; otherwise the plane holds codes."""


CODINGS = {"2025": DepthCoding(0.0, 16383, is_scaled=True), "2026": DepthCoding(0.01, 4095, is_scaled=False)}
KEY_2026 = "observation.depth_linear."
"""How the keys of depth videos begin in 2026."""


def coding(key: str) -> DepthCoding:
    """Returns the coding of the depth video with that key in meta/info.json."""
    return CODINGS["2026" if key.startswith(KEY_2026) else "2025"]


@functools.cache
def metres(depth_coding: DepthCoding, pixel_format: str) -> np.ndarray:
    """Returns the depth of every value that a plane can hold: float32 [2**bits], metres.

    Raises:
        ValueError: the pixel format is none that holds depth.
    """
    if pixel_format not in FORMATS:
        raise ValueError(f"depth cannot be read from pixel format {pixel_format}; known are {', '.join(FORMATS)}")
    bits, is_limited = FORMATS[pixel_format]
    values = np.arange(2**bits, dtype=np.float64)
    if not depth_coding.is_scaled:
        codes = values
    elif is_limited:
        unit = 2 ** (bits - 8)
        codes = np.rint((values - LUMA_BLACK * unit) * SCALED / ((LUMA_WHITE - LUMA_BLACK) * unit))
    else:
        codes = np.floor(values * (2**16 + 2 ** (16 - bits)) / 2**bits) if bits < 16 else values
    return decode(depth_coding, codes).astype(np.float32)


def decode(depth_coding: DepthCoding, codes: np.ndarray) -> np.ndarray:
    """Returns codes in metres, float64."""
    low, high = np.log(depth_coding.near + SHIFT), np.log(FAR + SHIFT)
    return np.clip(np.exp(codes / depth_coding.top * (high - low) + low) - SHIFT, depth_coding.near, FAR)


def encode(depth_coding: DepthCoding, depth: np.ndarray) -> np.ndarray:
    """Returns depth in metres as codes, uint16."""
    low, high = np.log(depth_coding.near + SHIFT), np.log(FAR + SHIFT)
    clipped = np.clip(np.asarray(depth, np.float64), depth_coding.near, FAR)
    return np.rint((np.log(clipped + SHIFT) - low) / (high - low) * depth_coding.top).astype(np.uint16)


def luma(frame: av.VideoFrame) -> np.ndarray:
    """Returns the first plane of a frame with 9 to 16 bits: uint16 [h, w], a copy."""
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), "<u2").reshape(plane.height, plane.line_size // 2)[:, : plane.width].copy()
