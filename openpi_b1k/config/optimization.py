"""How parameters move: optimiser, learning rate, which of them are trained, and how images are varied meanwhile."""

import dataclasses
from typing import Literal

from openpi_b1k.config.model import FORBID_EXTRA

Role = Literal["vision", "language", "action_expert", "projections"]
ROLES: tuple[Role, ...] = ("vision", "language", "action_expert", "projections")
"""Groups of parameters: vision tower, VLM, action expert, and the small maps around them (time, actions, points)."""
PREFIX_ROLES: tuple[Role, ...] = ("vision", "language")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW after clipping by the global gradient norm. Source of the defaults: openpi `training/optimizer.py`."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    """Applied to everything but biases and norm scales."""
    clip_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"
    """Type of Adam's first moment; bfloat16 takes half the memory."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"b1 and b2 must lie in [0, 1); got {self.b1} and {self.b2}")
        if not (self.eps > 0 and self.clip_norm > 0 and self.weight_decay >= 0):
            raise ValueError(
                "eps and clip_norm must be above 0 and weight_decay not negative; got "
                f"{self.eps}, {self.clip_norm} and {self.weight_decay}"
            )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to `peak_lr`, then a cosine down to `final_lr` at the last step of the run."""

    warmup: float = 0.02
    """Part of the run's steps, in [0, 1)."""
    peak_lr: float = 2.5e-5
    final_lr: float = 2.5e-6

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a part of the run's steps, in [0, 1); got {self.warmup}")
        if not 0 <= self.final_lr <= self.peak_lr or self.peak_lr <= 0:
            raise ValueError(
                f"0 <= final_lr <= peak_lr must hold, with peak_lr above 0; got {self.final_lr} and {self.peak_lr}"
            )


@dataclasses.dataclass(frozen=True)
class CameraAugmentation:
    """How one camera's images are varied. Colours change with `probability`; the defaults change nothing."""

    crop: float = 1.0
    """Part of height and width that is kept, at a random place, and enlarged again; in (0, 1]."""
    rotation: float = 0.0
    """Largest rotation either way, in degrees."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 0.5
    """Of an image's colours being changed at all."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or not 0 <= self.rotation <= 180 or not 0 <= self.probability <= 1:
            raise ValueError(
                "crop must lie in (0, 1], rotation in [0, 180] degrees, probability in [0, 1]; got "
                f"{self.crop}, {self.rotation} and {self.probability}"
            )
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")


COLOURS = CameraAugmentation(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1)
CROP_AND_COLOURS = dataclasses.replace(COLOURS, crop=0.95, rotation=5.0)
UNVARIED = CameraAugmentation()


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Random variation of training images, on the devices, each image by itself.

    Source of the defaults: openpi `models/model.py` at 15a9616, which crops, turns and colours the base camera and only
    colours the wrists'.
    """

    head: CameraAugmentation = CROP_AND_COLOURS
    left_wrist: CameraAugmentation = COLOURS
    right_wrist: CameraAugmentation = COLOURS

    __pydantic_config__ = FORBID_EXTRA


NO_AUGMENTATION = AugmentationConfig(UNVARIED, UNVARIED, UNVARIED)
