"""Generated footage that costs a decoder about what the real one does: a camera that moves through a textured room.

The 2026 release keeps 82,845 frames of the head camera in a file of about 200 MB (lerobot's default size of a file):
0.04 bits per pixel. Flat drawings take a tenth of that and noise a hundred times as much, and decoding time follows.
"""

import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
import PIL.Image
from av.container import OutputContainer
from av.video.stream import VideoStream

from openpi_b1k.curation.encoders import Encoder, write_video

FPS = 30
ROOM_PIXELS = 1600
"""Height and width of the painted room that the camera pans over."""
OCTAVES = ((8, 60.0), (25, 30.0), (100, 18.0), (400, 14.0))
"""Cells along the room's side and amplitude, in grey levels, of each layer of its texture."""
NUM_OBJECTS = 250
NOISE = 1.0
"""Standard deviation of what differs from frame to frame everywhere, in grey levels: a renderer's grain."""


TICKS = 512
"""Of a muxed file's clock, in a frame."""


def draw(seed: int, size: int, num_frames: int) -> Iterator[np.ndarray]:
    """Yields uint8 [size, size, 3]: a room seen by a camera that pans and turns, with an arm in front of it."""
    rng = np.random.default_rng(seed)
    room = _paint_room(rng)
    arm = PIL.Image.fromarray(_paint_arm(rng, size))
    shape = PIL.Image.fromarray(np.asarray(arm).any(axis=2).astype(np.uint8) * 255)
    grain = (rng.standard_normal((8, size, size, 1)) * NOISE).astype(np.float32)
    speeds = rng.uniform(0.004, 0.012, 4) * rng.choice([-1, 1], 4)
    phases = rng.uniform(0, 2 * np.pi, 4)
    for frame in range(num_frames):
        x, y, turn, reach = np.sin(speeds * frame + phases)
        scale = ROOM_PIXELS / size / 2.6
        cos, sin = scale * np.cos(0.2 * turn), scale * np.sin(0.2 * turn)
        centre_x, centre_y = ROOM_PIXELS / 2 * (1 + 0.35 * x), ROOM_PIXELS / 2 * (1 + 0.35 * y)
        matrix = (cos, -sin, centre_x - (cos - sin) * size / 2, sin, cos, centre_y - (sin + cos) * size / 2)
        picture = room.transform((size, size), PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BILINEAR)
        place = (int(size * 0.2 * reach), int(size * 0.1 * turn))
        picture.paste(arm, place, shape)
        noisy = np.asarray(picture) + grain[frame % len(grain)]
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def encode(path: pathlib.Path, seed: int, size: int, num_frames: int, encoder: Encoder) -> None:
    """Draws a clip and writes it, one frame per 1/30 s; the directory is there."""
    frames = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in draw(seed, size, num_frames))
    write_video(path, frames, encoder, size, FPS)


def repeat(clips: list[pathlib.Path], target: pathlib.Path) -> None:
    """Writes clips one after the other into one file, packet by packet, without decoding.

    The clips must come from the same encoder settings and size, each starting with a key frame that nothing before it
    is needed for.
    """
    with av.open(str(clips[0])) as first, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(first.streams.video[0], opaque=True)
        stream.time_base = Fraction(1, FPS * TICKS)
        offset = 0
        for clip in clips:
            offset += _append(clip, output, stream, offset)


def _append(clip: pathlib.Path, output: OutputContainer, stream: VideoStream, offset: int) -> int:
    """Muxes a clip `offset` ticks after the start and returns its length in ticks."""
    ticks = 0
    with av.open(str(clip)) as source:
        video = source.streams.video[0]
        unit = cast(Fraction, video.time_base) / cast(Fraction, stream.time_base)
        for packet in source.demux(video):
            if packet.pts is None or packet.dts is None:
                continue  # the empty packet at a file's end
            packet.pts = offset + round((packet.pts - (video.start_time or 0)) * unit)
            packet.dts = offset + round((packet.dts - (video.start_time or 0)) * unit)
            packet.duration = TICKS
            packet.time_base = cast(Fraction, stream.time_base)
            packet.stream = stream
            output.mux(packet)
            ticks += TICKS
    return ticks


def _paint_room(rng: np.random.Generator) -> PIL.Image.Image:
    """Returns a room: layers of smooth texture, and boxes with edges and a texture of their own."""
    size = (ROOM_PIXELS, ROOM_PIXELS)
    room = np.full((*size, 3), 120, np.float32)
    for cells, amplitude in OCTAVES:
        room += _texture(rng, cells, amplitude)
    fine = _texture(rng, 300, 10.0)
    for _ in range(NUM_OBJECTS):
        left, top = rng.integers(0, ROOM_PIXELS - 40, 2)
        width, height = rng.integers(20, 200, 2)
        where = np.s_[top : top + height, left : left + width]
        room[where] = rng.uniform(30, 220, 3) + fine[where] * rng.uniform(0, 1)
    return PIL.Image.fromarray(np.clip(room, 0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, cells: int, amplitude: float) -> np.ndarray:
    """Returns smooth noise of `cells` cells along a side: float32 [room, room, 3]."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    layer = PIL.Image.fromarray(coarse).resize((ROOM_PIXELS, ROOM_PIXELS), PIL.Image.Resampling.BICUBIC)
    return np.asarray(layer)[:, :, None] * (amplitude * rng.uniform(0.7, 1.0, 3).astype(np.float32))


def _paint_arm(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns an arm with a gripper on black: uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size] / size
    arm = np.zeros((size, size, 3))
    shade = 60 + 120 * (1 - np.abs(x - 0.5) / 0.12).clip(0, 1)
    is_arm = (np.abs(x - 0.5) < 0.12 - 0.06 * (1 - y)) & (y > 0.45)
    is_finger = (np.abs(np.abs(x - 0.5) - 0.06) < 0.02) & (y > 0.33) & (y <= 0.45)
    arm[is_arm] = shade[is_arm, None] + rng.normal(0, 4, (int(is_arm.sum()), 1))
    arm[is_finger] = (70, 70, 80)
    return np.clip(arm, 0, 255).astype(np.uint8)
