import numpy as np
import pytest

from openpi_b1k.transforms.images import resize_with_pad
from openpi_b1k.transforms.segmentation import SegmentationImage, labels_to_image


def test_levels_are_eighths_of_white():
    labels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    image = labels_to_image(labels, 3)
    assert (image.shape, image.dtype) == ((3, 3, 3), np.uint8)
    for label in range(9):
        assert image[label // 3, label % 3].tolist() == [round(label / 8 * 255)] * 3


def test_no_label_comes_up_that_was_not_there(reference):
    labels = reference["b1k/in/seg"].astype(np.uint8) // 3 * 3
    grey = labels_to_image(labels, 224)[..., 0]
    assert set(np.unique(grey)) == {round(label / 8 * 255) for label in np.unique(labels)}


def test_the_mean_is_comets(reference):
    means = labels_to_image(reference["b1k/in/seg"].astype(np.uint8), 224).mean((0, 1))
    np.testing.assert_allclose(means, reference["b1k/out/seg_image_224_mean"], atol=0.01)


def test_prepared_labels_give_the_same_image():
    """Labels that were brought to the model's size by their nearest pixels beforehand are taken as they are."""
    labels = np.random.default_rng(0).integers(0, 9, (720, 720), np.uint8)
    nearest = ((np.arange(224) + 0.5) * 720 / 224).astype(int)
    prepared = labels[np.ix_(nearest, nearest)]
    np.testing.assert_array_equal(labels_to_image(labels, 224), labels_to_image(prepared, 224))


def test_a_rectangle_is_padded_with_no_label():
    image = labels_to_image(np.full((2, 4), 8, np.uint8), 4)
    assert image[..., 0].tolist() == [[0] * 4, [255] * 4, [255] * 4, [0] * 4]
    assert resize_with_pad(np.full((2, 4, 3), 9, np.uint8), 4).shape == (4, 4, 3)


def test_labels_are_checked():
    with pytest.raises(ValueError, match="room for 8 labels, a skill's objects counted from 1; got 9"):
        labels_to_image(np.full((4, 4), 9, np.uint8), 4)
    with pytest.raises(ValueError, match=r"must be uint8 \[h, w\]; got int64 \[4, 4\]"):
        labels_to_image(np.zeros((4, 4), np.int64), 4)
    with pytest.raises(ValueError, match=r"must be uint8 \[h, w\]; got uint8 \[4, 4, 3\]"):
        labels_to_image(np.zeros((4, 4, 3), np.uint8), 4)


def test_the_transform_adds_an_image_and_says_whether_it_is_there():
    head = np.ones((4, 4, 3), np.uint8)
    sample = {"images": {"head": head}, "image_masks": {"head": np.True_}, "labels": np.full((2, 2), 1, np.uint8)}
    shown = SegmentationImage(4)(sample)
    assert list(shown) == list(sample)[:2]
    assert list(shown["images"]) == list(shown["image_masks"]) == ["head", "segmentation"]
    assert shown["images"]["segmentation"].tolist() == [[[32] * 3] * 4] * 4
    assert shown["image_masks"]["segmentation"]
    assert list(sample["images"]) == ["head"]
    absent = SegmentationImage(4)(sample | {"labels": None})
    assert not absent["images"]["segmentation"].any()
    assert not absent["image_masks"]["segmentation"]
