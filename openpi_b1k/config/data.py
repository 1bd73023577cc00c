"""What is read, and how it becomes what the model sees."""

import dataclasses
from typing import Literal

from openpi_b1k.config.model import FORBID_EXTRA

Generation = Literal["2025", "2026"]
StateLayout = Literal["grippers_last", "like_action"]
Normalization = Literal["quantile", "zscore"]
Modality = Literal["rgb", "depth", "segmentation"]
PromptLevel = Literal[0, 1, 2]

CAMERAS = ("head", "left_wrist", "right_wrist")
ACTION_FIELDS = ("base", "torso", "left_arm", "left_gripper", "right_arm", "right_gripper")
EXTRA_CAMERA = "head"
"""The camera whose depth or segmentation is read, where they are asked for."""
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
    per_step_norm: bool = False
    """Statistics of actions for each step of the chunk by itself: as deltas, later steps differ more."""
    clip_normalized: float | None = 5.0
    """Normalised values are clipped to [-x, x]; None leaves them as they are."""
    mask_padding: bool = True
    """Leave padded action dims and steps past the episode's end out of the loss (openpi's loss counts both)."""
    tokenizer: str = PALIGEMMA_TOKENIZER
    """SentencePiece model: a local path, gs://, hf:// or https:// address, or package:NAME for one shipped here."""
    depth_stride: int = 9
    """Of the camera's native rows and columns, every n-th becomes a point, whatever the depth's resolution; 9 gives
    6400 points (openpi-comet's)."""

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
        if self.depth_stride < 1:
            raise ValueError(f"depth_stride must be at least 1; got {self.depth_stride}")
        if self.clip_normalized is not None and not self.clip_normalized > 1:
            raise ValueError(f"clip_normalized must be above 1 or None; got {self.clip_normalized}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set: which of its demonstrations are read, and how they become samples."""

    name: str = "demonstrations"
    """What logs call this source."""
    source: Literal["b1k", "sample", "random"] = "b1k"
    """Demonstrations on disk, demonstrations the sample world makes on first use, or random numbers."""
    generation: Generation = "2025"
    """Format and robot state of the data: the 2025 or the 2026 challenge."""
    root: str | None = None
    """Data set directory. Default: $OPENPI_B1K_DATA, else datasets/<generation>-challenge-demos."""
    tasks: tuple[str, ...] = ()
    """Task names; empty means every task of the data set."""
    episodes: tuple[int, ...] = ()
    """Positions within each task's episodes, in order of number; empty means all. `$(seq 0 189)` is a shell's range."""
    validation_episodes: tuple[int, ...] | None = None
    """Positions within each task's episodes that are held out; None: the last 5 %, at least one; empty: none."""
    cameras: tuple[str, ...] = CAMERAS
    """Cameras the model sees; it orders them by name, as openpi does."""
    modalities: tuple[Modality, ...] = ("rgb",)
    """What is read of them: rgb always; depth (point cloud) and segmentation (extra image) of the head camera."""
    prompt_level: PromptLevel = 0
    """0: the task's sentence; 1: the skill under way with its objects; 2: openpi-comet's orchestrator subtask."""
    skill_weights: tuple[tuple[str, float], ...] = ()
    """(skill, part of its frames that is kept, in [0, 1]); "all" stands for every skill not named, and without it those
    are kept whole."""
    trim_idle: bool = True
    """Leave out idle frames at an episode's ends: outside the annotation's valid_duration, else without motion."""
    transforms: TransformConfig = TransformConfig()
    weight: float = 1.0
    """Share of the samples drawn from this source, relative to the other sources of a mixture."""
    sample_demos: int = 0
    """Demonstrations the sample world makes (source sample only); with `root` set, none are made."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if (self.source == "sample") != (self.sample_demos > 0):
            raise ValueError(
                f"sample_demos must be above 0 with source 'sample' and 0 otherwise; got {self.sample_demos} with "
                f"{self.source!r}"
            )
        for name in ("tasks", "episodes", "validation_episodes", "cameras", "modalities"):
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must name each once; got {values}")
        if min((*self.episodes, *(self.validation_episodes or ())), default=0) < 0:
            raise ValueError("episodes and validation_episodes are positions counted from 0; got a negative one")
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0; got {self.weight}")
        self._check_cameras()
        self._check_skill_weights()

    def _check_cameras(self) -> None:
        for name in self.cameras:
            if name not in CAMERAS:
                raise ValueError(f"no camera {name!r}; known cameras: {', '.join(CAMERAS)}")
        if not self.cameras:
            raise ValueError(f"cameras must name at least one camera; known cameras: {', '.join(CAMERAS)}")
        if "rgb" not in self.modalities:
            raise ValueError(f"modalities must hold 'rgb'; got {self.modalities}")
        if len(self.modalities) > 1 and EXTRA_CAMERA not in self.cameras:
            raise ValueError(f"depth and segmentation are the {EXTRA_CAMERA} camera's; cameras are {self.cameras}")

    def _check_skill_weights(self) -> None:
        names = [name for name, _ in self.skill_weights]
        if len(set(names)) != len(names):
            raise ValueError(f"skill_weights must name each skill once; got {', '.join(names)}")
        for name, weight in self.skill_weights:
            if not 0 <= weight <= 1:
                raise ValueError(
                    f"skill_weights are parts of a skill's frames, in [0, 1]; got {weight} for {name!r}: to see a "
                    "skill more often, lower the others"
                )


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """The run's main source, which also says how its policy is served, further ones, and how all are read."""

    extra_sources: tuple[SourceConfig, ...] = ()
    """Further sources of a mixture. Recipes add them; flags such as --data.extra-sources.0.root change them."""
    norm_stats_of: Literal["pooled", "own"] = "pooled"
    """In a mixture: one set of statistics over all sources, by weight, or each source its own."""
    order: Literal["auto", "frames", "spans"] = "auto"
    """Frames drawn independently, or spans between key frames decoded once and mixed through a window. auto: spans
    where key frames are more than 32 frames apart and no frame cache is given."""
    window_gb: float = 2.2
    """Memory of the spans' window over all processes and workers, in GB; decides how many spans are mixed."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """A frame that cannot be read ends the run, or the next good one of its lane replaces it, counted and logged."""
    num_workers: int = 8
    """Processes that read and decode; 0 reads in a thread of the training process."""
    prefetch: int = 2
    """Batches kept ready on the devices, and as many more by the workers."""
    frame_cache_gib: float = 0.0
    """Memory for decoded frames, shared by the data set's readers of one process; 0 decodes every time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 0 or self.prefetch < 1 or not self.frame_cache_gib >= 0:
            raise ValueError(
                "num_workers and frame_cache_gib must not be negative and prefetch at least 1; got "
                f"{self.num_workers}, {self.frame_cache_gib} and {self.prefetch}"
            )
        if not self.window_gb > 0:
            raise ValueError(f"window_gb must be above 0; got {self.window_gb}")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"the sources of a mixture need different names; got {', '.join(names)}")
        for source in self.extra_sources:
            if (sorted(source.cameras), sorted(source.modalities)) != (sorted(self.cameras), sorted(self.modalities)):
                raise ValueError(f"source {source.name!r} must have the main source's cameras and modalities")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The main source, then the further ones."""
        return (self, *self.extra_sources)
