import numpy as np
import pytest

from openpi_b1k.transforms.images import ResizeImages, resize_with_pad


def test_agrees_with_openpi_bit_for_bit(reference):
    np.testing.assert_array_equal(resize_with_pad(reference["b1k/in/head"], 224), reference["resize/out/head_224"])
    np.testing.assert_array_equal(resize_with_pad(reference["resize/in/rect"], 224), reference["resize/out/rect_224"])


@pytest.mark.parametrize(("height", "width"), [(12, 6), (6, 12), (5, 3), (100, 1)])
def test_a_rectangle_is_centred_on_black(height, width):
    size, white = 6, np.full((height, width, 3), 255, np.uint8)
    resized = resize_with_pad(white, size)
    assert resized.shape == (size, size, 3)
    rows, columns = np.flatnonzero(resized.any((1, 2))), np.flatnonzero(resized.any((0, 2)))
    longest = max(height, width)
    for side, filled in ((height, rows), (width, columns)):
        expected = max(1, side * size // longest)
        assert filled.tolist() == list(range((size - expected) // 2, (size - expected) // 2 + expected))


def test_a_square_fills_the_square_at_every_size():
    white = np.full((49, 49, 3), 255, np.uint8)
    for size in range(1, 120):
        resized = resize_with_pad(white, size)
        assert resized.shape == (size, size, 3)
        assert (resized == 255).all()


def test_an_image_of_the_right_size_is_not_touched():
    images = {"head": np.zeros((8, 8, 3), np.uint8), "left_wrist": np.zeros((16, 16, 3), np.uint8)}
    resized = ResizeImages(8)({"images": images, "prompt": "wave"})
    assert resized["images"]["head"] is images["head"]
    assert resized["images"]["left_wrist"].shape == (8, 8, 3)
    assert images["left_wrist"].shape == (16, 16, 3)
    assert resized["prompt"] == "wave"


def test_colours_cut_out_of_rgba_are_resized_as_if_they_were_alone():
    rgba = np.random.default_rng(0).integers(0, 256, (30, 20, 4), np.uint8)
    cut = rgba[..., :3]
    assert not cut.flags.c_contiguous
    np.testing.assert_array_equal(resize_with_pad(cut, 8), resize_with_pad(cut.copy(), 8))
    flipped = rgba[::-1, ::-1, 2::-1]
    np.testing.assert_array_equal(resize_with_pad(flipped, 8), resize_with_pad(flipped.copy(), 8))
    np.testing.assert_array_equal(resize_with_pad(cut[..., 0], 8), resize_with_pad(cut[..., 0].copy(), 8))
