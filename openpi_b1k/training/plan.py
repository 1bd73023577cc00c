"""How much memory a run takes on each device, told before it starts and without any device.

The state is exact: shapes, types and shardings on a mesh without devices. What forward and backward pass keep is read
off the model's derivative (`plan_activations.py`). What a layer needs for a moment while it is computed depends on how
well the compiler fuses; for that there are two measured factors, LAYER_BACKWARD and LAYER_FORWARD. They are of layers
in a scan, as all real models have; one of six layers or less that computes them twice may take a fifth more.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.optimization import OptimizerConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.sharding import DATA, FSDP
from openpi_b1k.training import state as train_state
from openpi_b1k.training import trainable
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.plan_activations import (
    PartMemory,
    images_per_sample,
    model_of,
    part_memories,
    points_per_sample,
)
from openpi_b1k.training.window import STEPS_IN_FLIGHT

GB = 1e9
MARGIN = 0.05
"""Part of a device's memory that a plan leaves free."""
LAYER_BACKWARD = 1.4
"""What the backward pass of a layer takes at its height, over what the layer keeps where nothing is computed twice.

Measured with jaxlib 0.10.2 for CPUs at float32: 1.35 to 1.41 over remats, depths, batches and microbatches. Compilers
for GPUs fuse more and should take less."""
LAYER_FORWARD = 0.4
"""The same for a layer without a backward pass: 0.32 to 0.33 as measured there."""
KERNEL_COPIES = 3
"""Of a layer's kernels in the activations' type: its own, the next one's, which is gathered meanwhile, its gradient."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes per device of a run."""

    num_devices: int
    fsdp: int
    microbatches: int
    rows: int
    """Samples of a microbatch on one device."""
    remat: str
    trained: int
    """Parameters that are trained, float32."""
    frozen: int
    """The other parameters, as they are stored."""
    moments: int
    """Adam's, and its count."""
    ema: int
    gradients: int
    """Those of a microbatch and, where there are several, their sum."""
    activations: int
    """What the backward pass of a microbatch keeps, and what the largest layer takes while it is computed."""
    batch: int
    """Batches on the device: made ahead, in flight, and the images of one that are being varied."""
    workspace: int
    """Copies of a layer's kernels in the activations' type, and the largest array of the update once more."""
    merged: int
    """Kernels with their adapters merged: made while a checkpoint is saved, when no step runs."""

    @property
    def state(self) -> int:
        """Bytes that are taken all the time, but for batches."""
        return self.trained + self.frozen + self.moments + self.ema

    @property
    def total(self) -> int:
        """Bytes at the run's height: in a step, or while a checkpoint is saved."""
        in_step = self.gradients + self.activations + self.workspace
        return self.state + self.batch + max(in_step, self.merged)


def estimate(config: TrainConfig, num_devices: int) -> Plan:
    """Returns the memory a run takes on each of its devices.

    Raises:
        ValueError: fsdp, microbatches or remat are still auto, or devices and batch do not fit them.
    """
    fsdp, microbatches, remat = config.fsdp, config.microbatches, config.model.remat
    if fsdp == "auto" or microbatches == "auto" or remat == "auto":
        raise ValueError(
            f"fsdp {fsdp}, microbatches {microbatches} and model.remat {remat} must be decided before memory can be "
            "planned: plan_choice.resolve does that"
        )
    if num_devices % fsdp:
        raise ValueError(f"fsdp {fsdp} does not divide {num_devices} devices")
    if config.batch_size % (num_devices * microbatches):
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of {num_devices} devices x {microbatches} microbatches"
        )
    lasting = _state_bytes(_without_layout(config), num_devices, fsdp)
    rows = config.batch_size // (num_devices * microbatches)
    sums = 2 if microbatches > 1 else 1
    return Plan(
        num_devices=num_devices,
        fsdp=fsdp,
        microbatches=microbatches,
        rows=rows,
        remat=remat,
        trained=lasting.trained,
        frozen=lasting.frozen,
        moments=lasting.moments,
        ema=lasting.ema,
        gradients=sums * lasting.trained,
        activations=activation_bytes(_memories(_for_pass(config)), rows, remat),
        batch=batch_bytes(config, num_devices),
        workspace=KERNEL_COPIES * lasting.layer + lasting.largest,
        merged=lasting.merged,
    )


def fits(plan: Plan, memory_bytes: float) -> bool:
    """Returns whether a plan leaves `MARGIN` of a device's memory free."""
    return plan.total <= (1 - MARGIN) * memory_bytes


def line(plan: Plan, memory_bytes: float | None = None) -> str:
    """Returns a plan as one line."""
    of = "" if memory_bytes is None else f" of {memory_bytes / GB:.1f}"
    named = {
        "parameters": plan.trained,
        "frozen": plan.frozen,
        "gradients": plan.gradients,
        "moments": plan.moments,
        "EMA": plan.ema,
        "activations": plan.activations,
        "batch": plan.batch,
        "workspace": plan.workspace,
    }
    parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in named.items() if size)
    merging = f", and {plan.merged / GB:.2f} while saving" if plan.merged else ""
    pieces = f"{plan.microbatches} x {plan.rows} samples" if plan.microbatches > 1 else f"{plan.rows} samples"
    return (
        f"memory plan: {plan.total / GB:.1f}{of} GB on each of {plan.num_devices} devices ({parts}{merging}; "
        f"fsdp {plan.fsdp}, {pieces} per device, remat {plan.remat})"
    )


def activation_bytes(parts: list[PartMemory], rows: int, remat: str) -> int:
    """Returns what passes of `rows` rows keep, and what the layer that takes most needs for a moment."""
    saved = sum(part.saved[remat].of(rows) for part in parts if part.saved)
    moment = max(part.layer.of(rows) * (LAYER_BACKWARD if part.saved else LAYER_FORWARD) for part in parts)
    return math.ceil(saved + moment)


def batch_bytes(config: TrainConfig, num_devices: int) -> int:
    """Returns what batches take on a device: those made ahead, those of steps in flight, and the varied images.

    Images are uint8; while one camera's are varied they are float32 for a moment.
    """
    model, rows = config.model, config.batch_size // num_devices
    image = model.image_size**2 * 3
    images = images_per_sample(config) * image
    points = points_per_sample(config) * 3 * 4 if model.point_clouds else 0
    prompt, actions = model.max_prompt_tokens * (4 + 1), model.action_horizon * model.action_dim * (4 + 1)
    sample = images + points + prompt + actions + model.action_dim * 4
    return rows * (sample * (config.data.prefetch + 1 + STEPS_IN_FLIGHT) + images + 4 * image)


@dataclasses.dataclass(frozen=True)
class _StateBytes:
    trained: int
    frozen: int
    moments: int
    ema: int
    largest: int
    """The largest trained array."""
    layer: int
    """Kernels of the largest layer, whole, in the activations' type."""
    merged: int


@functools.lru_cache(maxsize=256)
def _state_bytes(config: TrainConfig, num_devices: int, fsdp: int) -> _StateBytes:
    axis_types = (AxisType.Auto, AxisType.Auto)
    mesh = AbstractMesh((num_devices // fsdp, fsdp), (DATA, FSDP), axis_types=axis_types)
    state = train_state.abstract_state(model_of(config.model), make_optimizer(config), config, mesh)
    params, size = train_state.full(state), trainable.bytes_per_device
    kernels = {path: leaf for path, leaf in flatten(params).items() if path.endswith("/kernel") and "/layers/" in path}
    layers: dict[str, int] = {}
    for path, leaf in kernels.items():
        layer = path.split("/layers/")[0]
        each = math.prod(leaf.shape[1:]) * jnp.dtype(config.model.dtype).itemsize
        layers[layer] = layers.get(layer, 0) + each
    adapted = trainable.adapted_kernels(params)
    return _StateBytes(
        trained=size(state.params),
        frozen=size(state.frozen),
        moments=size(state.opt_state),
        ema=size(state.ema_params),
        largest=max(size(leaf) for leaf in jax.tree.leaves(state.params)),
        layer=max(layers.values()),
        merged=sum(size(leaf) // leaf.dtype.itemsize * 4 for leaf in jax.tree.leaves(adapted)),
    )


@functools.lru_cache(maxsize=256)
def _memories(config: TrainConfig) -> list[PartMemory]:
    params = model_of(config.model).abstract_params()
    return part_memories(config, jax.eval_shape(lambda params: trainable.as_stored(params, config), params))


def _without_layout(config: TrainConfig) -> TrainConfig:
    """Returns the config without what the state does not depend on, so that plans share it."""
    model = dataclasses.replace(config.model, remat="none")
    return dataclasses.replace(config, model=model, fsdp=1, microbatches=1, batch_size=1)


def _for_pass(config: TrainConfig) -> TrainConfig:
    """Returns the config without what the pass of a row does not depend on, which the optimiser is."""
    return dataclasses.replace(
        _without_layout(config),
        optimizer=OptimizerConfig(),
        ema_decay=None,
        freeze=config.frozen,
        train_expert_only=False,
    )
