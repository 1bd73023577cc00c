"""What is read, and how it becomes what the model sees."""

import dataclasses
from typing import Literal

from openpi_b1k.config.model import FORBID_EXTRA

Generation = Literal["2025", "2026"]
StateLayout = Literal["grippers_last", "like_action"]
Normalization = Literal["quantile", "zscore"]

CAMERAS = ("head", "left_wrist", "right_wrist")
ACTION_FIELDS = ("base", "torso", "left_arm", "left_gripper", "right_arm", "right_gripper")
PALIGEMMA_TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
SAMPLE_TOKENIZER = "package:sample_tokenizer.model"


@dataclasses.dataclass(frozen=True)
class TransformConfig:
    """How raw samples become model inputs, and model outputs actions. Travels with the checkpoint."""

    state_layout: StateLayout = "like_action"
    """Order of the 23-dim state; grippers hold the sum of both fingers in metres in either."""
    delta_fields: tuple[str, ...] = ()
    """Action fields predicted relative to the state at the chunk's first step."""
    normalization: Normalization = "quantile"
    clip_normalized: float | None = 5.0
    """Normalised values are clipped to [-x, x]; None leaves them as they are."""
    mask_padding: bool = True
    """Leave padded action dims and steps past the episode's end out of the loss (openpi's loss counts both)."""
    tokenizer: str = PALIGEMMA_TOKENIZER
    """SentencePiece model: a local path, gs://, hf:// or https:// address, or package:NAME for one shipped here."""
    cameras: tuple[str, ...] = CAMERAS
    """Cameras the model sees; it orders them by name, as openpi does."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        for name in self.delta_fields:
            if name not in ACTION_FIELDS:
                raise ValueError(f"no action field {name!r} in delta_fields; known fields: {', '.join(ACTION_FIELDS)}")
            if name == "base" or name.endswith("gripper"):
                raise ValueError(
                    f"delta_fields must not hold {name!r}: its command (a velocity or an open/close signal) and its "
                    "state differ in unit; joint positions can be deltas: torso, left_arm, right_arm"
                )
        for name in self.cameras:
            if name not in CAMERAS:
                raise ValueError(f"no camera {name!r}; known cameras: {', '.join(CAMERAS)}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must name at least one camera, each once; got {self.cameras}")
        if self.clip_normalized is not None and not self.clip_normalized > 1:
            raise ValueError(f"clip_normalized must be above 1 or None; got {self.clip_normalized}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which demonstrations are read, from where, by how many workers."""

    source: Literal["b1k", "sample", "random"] = "b1k"
    """Demonstrations on disk, demonstrations the sample world makes on first use, or random numbers."""
    generation: Generation = "2025"
    """Format and robot state of the data: the 2025 or the 2026 challenge."""
    root: str | None = None
    """Data set directory. Default: $OPENPI_B1K_DATA, else datasets/<generation>-challenge-demos."""
    tasks: tuple[str, ...] = ()
    """Task names; empty means every task of the data set."""
    transforms: TransformConfig = TransformConfig()
    num_workers: int = 8
    """Processes that read and decode; 0 reads in a thread of the training process."""
    prefetch: int = 2
    """Batches kept ready on the devices, and as many more by each worker."""
    frame_cache_gib: float = 0.0
    """Memory for decoded frames, shared by the data set's readers of one process; 0 decodes every time."""
    sample_demos: int = 0
    """Demonstrations the sample world makes (source sample only); with `root` set, none are made."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if (self.source == "sample") != (self.sample_demos > 0):
            raise ValueError(
                f"sample_demos must be above 0 with source 'sample' and 0 otherwise; got {self.sample_demos} with "
                f"{self.source!r}"
            )
        if self.num_workers < 0 or self.prefetch < 1 or not self.frame_cache_gib >= 0:
            raise ValueError(
                "num_workers and frame_cache_gib must not be negative and prefetch at least 1; got "
                f"{self.num_workers}, {self.frame_cache_gib} and {self.prefetch}"
            )
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must name each task once; got {self.tasks}")
