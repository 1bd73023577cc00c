"""Pictures at the model's size are what PyAV's and Pillow's plain conversions give, bit for bit."""

import itertools
import threading

import av
import numpy as np
import pytest

from openpi_b1k.data.frames.decoding import Decoder, Reader
from openpi_b1k.data.frames.files import OpenFile
from openpi_b1k.data.frames.mp4 import read_table
from openpi_b1k.data.frames.rgb import RgbFrames
from openpi_b1k.transforms.images import resize_with_pad

COLOURS = tuple(itertools.product((1, 2, 5, 9), (0, 1, 2)))  # BT.709, unknown, BT.601, BT.2020; unknown, limited, full


def noise(height, width, pixel_format="yuv420p", colour=(2, 0), seed=0):
    """Returns a frame with every value a byte can have, most of which no camera gives."""
    frame = av.VideoFrame(width, height, pixel_format)
    rng = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    frame.colorspace, frame.color_range = colour
    return frame


def plain(frame, size):
    image = frame.to_ndarray(format="rgb24")
    return image if size is None else resize_with_pad(image, size)


@pytest.mark.parametrize("side", [720, 480, 144, 96, 50, 56, 30])
@pytest.mark.parametrize("size", [None, 56])
def test_square_frames_of_all_colours(side, size):
    convert = RgbFrames(size)
    for seed, colour in enumerate(COLOURS):
        frame = noise(side, side, colour=colour, seed=seed)
        picture = convert(frame)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, plain(frame, size))


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (51, 51), (56, 56)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "rgb24"])
def test_other_shapes_and_formats(height, width, pixel_format):
    frame = noise(height, width, pixel_format)
    np.testing.assert_array_equal(RgbFrames(56)(frame), plain(frame, 56))


def test_sizes_take_turns_and_pictures_stay_as_they_are():
    convert = RgbFrames(224)
    frames = [noise(side, side, seed=seed) for seed, side in enumerate([720, 480, 480, 720, 224, 480])]
    pictures = [convert(frame) for frame in frames]
    for frame, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(picture, plain(frame, 224))


def test_threads_share_one():
    convert, frames = RgbFrames(56), [noise(144, 144, seed=seed) for seed in range(4)]
    pictures = [[] for _ in frames]

    def work(i):
        pictures[i] = [convert(frames[i]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frame, made in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(made, [plain(frame, 56)] * 50)


def test_frames_let_go_of_leave_the_decoder_small(data_dir):
    path = next((data_dir / "b1k_2025").glob("videos/*/observation.images.rgb.head/*.mp4"))

    def buffers(number_held):
        file = OpenFile(path)
        table = read_table(file, 30)
        reader = Reader(file, table, Decoder(table.codec))
        held, seen = [], set()
        for frame in reader.frames(range(60), pause=True):
            seen.add(frame.planes[0].buffer_ptr)
            held = [*held, frame][-number_held:] if number_held else []
            del frame
        return len(seen)

    assert buffers(0) <= 6
    assert buffers(0) < buffers(2)
