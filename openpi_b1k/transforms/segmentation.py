"""From labels of the objects a skill is about to one more image."""

import dataclasses

import numpy as np
import PIL.Image

from openpi_b1k.transforms.base import Sample
from openpi_b1k.transforms.images import resize_with_pad

IMAGE = "segmentation"
"""Name of the image among the cameras'."""
MAX_LABELS = 8
LEVELS = np.round(np.arange(MAX_LABELS + 1) / MAX_LABELS * 255).astype(np.uint8)


def labels_to_image(labels: np.ndarray, size: int) -> np.ndarray:
    """Returns labels as a grey image, uint8 [size, size, 3]: label / 8 * 255, at the nearest pixel.

    Not bilinear, as a blend of two labels would be a third one; data prepared at `size` give the same image.

    Args:
        labels: uint8 [h, w], 0 where none of the skill's objects is, else which of them, counted from 1.
        size: of the image, in pixels.

    Raises:
        ValueError: `labels` is no such image, or holds more than 8 labels.

    Source: openpi-comet at 4bb2aa7 for the levels.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"segmentation labels must be uint8 [h, w]; got {labels.dtype} {list(labels.shape)}")
    if labels.max(initial=0) > MAX_LABELS:
        raise ValueError(
            f"a segmentation image has room for {MAX_LABELS} labels, a skill's objects counted from 1; got "
            f"{labels.max()}"
        )
    grey = LEVELS[resize_with_pad(labels, size, PIL.Image.Resampling.NEAREST)]
    return np.repeat(grey[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class SegmentationImage:
    """Replaces `labels` (uint8 [h, w] or None) by an image named segmentation; without labels it is masked."""

    size: int

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with one more image, and in its mask whether it is there."""
        labels = sample["labels"]
        image = np.zeros((self.size, self.size, 3), np.uint8) if labels is None else labels_to_image(labels, self.size)
        rest = {name: value for name, value in sample.items() if name != "labels"}
        return rest | {
            "images": sample["images"] | {IMAGE: image},
            "image_masks": sample["image_masks"] | {IMAGE: np.bool_(labels is not None)},
        }
