"""A training run: everything that decides what `scripts/train.py` does."""

import dataclasses
from typing import Literal

import tyro

from openpi_b1k.config.data import DataConfig
from openpi_b1k.config.model import FORBID_EXTRA, ModelConfig

PI05_BASE = "gs://openpi-assets/checkpoints/pi05_base/params"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW after clipping by the global gradient norm. Source of the defaults: openpi `training/optimizer.py`."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    """Applied to everything but biases and norm scales."""
    clip_norm: float = 1.0

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

    warmup_steps: int = 1000
    peak_lr: float = 2.5e-5
    final_lr: float = 2.5e-6

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.final_lr <= self.peak_lr or self.peak_lr <= 0:
            raise ValueError(
                "warmup_steps must not be negative and 0 <= final_lr <= peak_lr with peak_lr above 0; got "
                f"{self.warmup_steps}, {self.final_lr} and {self.peak_lr}"
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and what is kept."""

    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 1
    """Newest checkpoints kept."""
    keep_every: int | None = 5000
    """Checkpoints at multiples of this are kept for good; None keeps only the newest `keep_last`."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.keep_last < 1:
            raise ValueError(f"save_every and keep_last must be at least 1; got {self.save_every} and {self.keep_last}")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_every):
            raise ValueError(
                f"keep_every must be a multiple of save_every, or nothing would be kept; got {self.keep_every} and "
                f"{self.save_every}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One recipe. `configs/<name>.py` holds one as CONFIG; flags change its fields."""

    name: tyro.conf.Suppress[str] = ""
    """The recipe's name, which is its file's; set when it is loaded."""
    exp_name: str | None = None
    """Name of the run; default: the time it started."""
    checkpoint_dir: str = "checkpoints"
    """Checkpoints go to <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>/."""
    resume: bool = False
    """Continue the named run, or without a name the recipe's newest."""
    overwrite: bool = False
    """Delete an existing run of that name first."""
    weights: str = PI05_BASE
    """Initial weights: the params directory of an openpi or openpi_b1k checkpoint, or none for random ones."""
    weights_kind: Literal["ema", "live"] = "ema"
    """Of a checkpoint with a moving average: that, which is what it acts with, or the live weights."""
    norm_stats: str = "data"
    """Statistics to normalise with: data (computed from it), checkpoint (those of `weights`), or the path of a file or
    checkpoint that has them."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    batch_size: int = 256
    """Samples per step over all devices."""
    num_steps: int = 50_000
    flow_samples: int = 1
    """Noise and time draws per sample; they share one pass through the VLM."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the parameters; None keeps none.

    After n updates min(decay, (1 + n) / (10 + n)) counts, so that the average forgets the initial weights sooner."""
    fsdp: int = 1
    """Devices that share one copy of the state; the rest of the mesh is data parallel."""
    seed: int = 0
    log_every: int = 100
    """Steps between lines of metrics."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "openpi_b1k"
    rollouts: int = 0
    """Episodes of the sample world, over all its tasks, played after training (data source sample only)."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_steps", "flow_samples", "fsdp", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32); got {self.seed}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1) or be None; got {self.ema_decay}")
        if self.resume and self.overwrite:
            raise ValueError("resume continues a run and overwrite deletes it; give one of them")
        if self.schedule.warmup_steps >= self.num_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} must be below num_steps {self.num_steps}"
            )
        if self.rollouts < 0 or (self.rollouts and self.data.source != "sample"):
            raise ValueError(
                f"rollouts needs data.source 'sample' and must not be negative; got {self.rollouts} with "
                f"{self.data.source!r}"
            )
        if self.rollouts and self.data.tasks:
            raise ValueError(
                f"rollouts play every task of the sample world, but data.tasks names {', '.join(self.data.tasks)}: "
                "train on all tasks, or give --rollouts 0"
            )
