"""A training run: everything that decides what `scripts/train.py` does."""

import dataclasses
from typing import Literal

import tyro

from openpi_b1k.config.data import DataConfig
from openpi_b1k.config.model import FORBID_EXTRA, ModelConfig
from openpi_b1k.config.optimization import (
    PREFIX_ROLES,
    ROLES,
    AugmentationConfig,
    OptimizerConfig,
    Role,
    ScheduleConfig,
)

PI05_BASE = "gs://openpi-assets/checkpoints/pi05_base/params"
FLOW_LOSS = "validation/flow_loss"
BEST_METRICS = (FLOW_LOSS, *(f"validation/{field}" for field in ("base", "torso", "left_arm", "right_arm")))
"""What the best checkpoint can be chosen by, each the lower the better."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and what is kept."""

    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 1
    """Newest checkpoints kept."""
    keep_every: int | None = 5000
    """Checkpoints at multiples of this are kept for good; None keeps only the newest `keep_last`."""
    keep_best: int = 1
    """Checkpoints kept that did best on the held-out episodes by `best_metric`; 0 keeps none for that."""
    best_metric: str = FLOW_LOSS
    """validation/flow_loss, or the error of sampled actions of one field, validation/right_arm for instance."""
    timeout_s: float = 3600.0
    """Seconds after which a save that has not finished ends the run instead of hanging it."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.keep_last < 1:
            raise ValueError(f"save_every and keep_last must be at least 1; got {self.save_every} and {self.keep_last}")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_every):
            raise ValueError(
                f"keep_every must be a multiple of save_every, or nothing would be kept; got {self.keep_every} and "
                f"{self.save_every}"
            )
        if self.keep_best < 0 or not self.timeout_s > 0:
            raise ValueError(
                f"keep_best must not be negative and timeout_s above 0; got {self.keep_best} and {self.timeout_s}"
            )
        if self.best_metric not in BEST_METRICS:
            raise ValueError(f"best_metric must be one of {', '.join(BEST_METRICS)}; got {self.best_metric!r}")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of one run find each other. Slurm's and Open MPI's are found without any of this."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same on every process."""
    num_processes: int | None = None
    process_id: int | None = None
    """This process, counted from 0."""
    heartbeat_timeout_s: int = 100
    """Seconds after which a process that has died is missed, and the others end."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(given) and not all(given):
            raise ValueError(
                "distributed.coordinator, num_processes and process_id belong together; got "
                f"{self.coordinator}, {self.num_processes} and {self.process_id}"
            )
        if self.num_processes is not None and not 0 <= (self.process_id or 0) < self.num_processes:
            raise ValueError(
                f"distributed.process_id must lie in [0, {self.num_processes}); got {self.process_id} of "
                f"{self.num_processes} processes"
            )
        if self.heartbeat_timeout_s < 10:
            raise ValueError(f"distributed.heartbeat_timeout_s must be at least 10; got {self.heartbeat_timeout_s}")


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
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    checkpoints: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    freeze: tuple[Role, ...] = ()
    """Groups of parameters that stay as they are: vision, language, action_expert, projections."""
    train_expert_only: bool = False
    """Freeze vision and language, besides what `freeze` names."""
    batch_size: int = 256
    """Samples per step over all devices."""
    num_steps: int = 50_000
    flow_samples: int = 1
    """Noise and time draws per sample; they share one pass through the VLM."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the parameters; None keeps none.

    After n updates min(decay, (1 + n) / (10 + n)) counts, so that the average forgets the initial weights sooner."""
    fsdp: int | Literal["auto"] = "auto"
    """Devices that share one copy of the state; the rest of the mesh is data parallel. auto: as the memory
    plan has it cheapest."""
    microbatches: int | Literal["auto"] = "auto"
    """Pieces of a batch that are computed one after the other, for the same update; auto: as the memory plan
    has it cheapest."""
    ignore_memory_plan: bool = False
    """Start although the plan says that the memory or the device will not do."""
    deterministic: bool = False
    """Have GPUs compute the same bits every time, which is slower."""
    seed: int = 0
    log_every: int = 100
    """Steps between lines of metrics."""
    validation_interval: int = 1000
    """Steps between looks at the held-out episodes, besides one before each checkpoint; 0: none."""
    validation_samples: int = 256
    """Held-out samples, the same each time."""
    max_nonfinite_steps: int = 10
    """Updates in a row that are skipped because loss or gradient is no number, before the run ends."""
    hang_timeout_s: float = 1800.0
    """Seconds without a finished step, compilation and saving apart, after which the run ends, saying where it hung."""
    profile: bool = False
    """Write a trace of a few steps to the run's directory."""
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "openpi_b1k"
    rollouts: int = 0
    """Episodes of the sample world, over all its tasks, played after training (data source sample only)."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_roles()
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32); got {self.seed}")
        if self.resume and self.overwrite:
            raise ValueError("resume continues a run and overwrite deletes it; give one of them")
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

    @property
    def frozen(self) -> tuple[Role, ...]:
        """The groups of parameters that are not trained, `train_expert_only` included."""
        frozen = {*self.freeze, *(PREFIX_ROLES if self.train_expert_only else ())}
        return tuple(role for role in ROLES if role in frozen)

    def _check_roles(self) -> None:
        if len(set(self.freeze)) != len(self.freeze):
            raise ValueError(f"freeze must name each group once; got {self.freeze}")
        adapted = self.model.lora.roles
        for role in adapted:
            if role not in self.frozen:
                raise ValueError(f"model.lora adapts {role}, which is trained itself: add {role} to freeze")
        if set(self.frozen) == set(ROLES) and not adapted:
            raise ValueError("freeze names every group, so nothing would be trained")
        if adapted and self.ema_decay is not None:
            raise ValueError(
                "model.lora and ema_decay exclude each other: averages of two factors do not make the average product"
            )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "num_steps", "flow_samples", "fsdp", "microbatches", "log_every"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        for name in ("validation_samples", "max_nonfinite_steps", "hang_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if self.validation_interval < 0:
            raise ValueError(f"validation_interval must not be negative; got {self.validation_interval}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1) or be None; got {self.ema_decay}")
