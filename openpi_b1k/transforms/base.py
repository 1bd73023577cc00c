"""What a transform is: a callable from a dict to a new dict that leaves its input, arrays included, as it was."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

Sample: TypeAlias = dict[str, Any]  # Any: arrays, strings, and dicts of images by camera
Transform: TypeAlias = Callable[[Sample], Sample]


@dataclasses.dataclass(frozen=True)
class Compose:
    """Applies transforms in order. An object and not a closure, so that worker processes can receive it."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample after all transforms."""
        for transform in self.transforms:
            sample = transform(sample)
        return sample
