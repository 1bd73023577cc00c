"""Images at the model's size."""

import dataclasses

import numpy as np
import PIL.Image

from openpi_b1k.transforms.base import Sample


def resize_with_pad(
    image: np.ndarray, size: int, resample: PIL.Image.Resampling = PIL.Image.Resampling.BILINEAR
) -> np.ndarray:
    """Returns the image scaled into a square of `size` pixels, centred, the rest 0: [size, size] or [size, size, 3].

    An image of that size is returned as it is. Source: openpi `image_tools.py` (Pillow, bilinear, sizes rounded down),
    with which it agrees bit for bit.

    Args:
        image: uint8 [h, w, 3] or [h, w].
        size: height and width in pixels.
        resample: bilinear for colours, nearest for labels.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    longest = max(height, width)
    new_height, new_width = (
        size if side == longest else max(1, int(side / (longest / size))) for side in (height, width)
    )
    resized = np.asarray(PIL.Image.fromarray(_contiguous(image)).resize((new_width, new_height), resample))
    if height == width:
        return resized
    padded = np.zeros((size, size, *image.shape[2:]), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    padded[top : top + new_height, left : left + new_width] = resized
    return padded


def _contiguous(image: np.ndarray) -> np.ndarray:
    """Returns the image in one piece of memory.

    Colours cut out of RGBA are not, and copied whole they cost as much as the resize; channel by channel a quarter.
    """
    if image.ndim < 3 or image.flags.c_contiguous:
        return np.ascontiguousarray(image)
    copied = np.empty(image.shape, image.dtype)
    for channel in range(image.shape[-1]):
        copied[..., channel] = image[..., channel]
    return copied


@dataclasses.dataclass(frozen=True)
class ResizeImages:
    """Brings the images of all cameras to `size` x `size` pixels."""

    size: int

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with resized images."""
        images = {name: resize_with_pad(image, self.size) for name, image in sample["images"].items()}
        return sample | {"images": images}
