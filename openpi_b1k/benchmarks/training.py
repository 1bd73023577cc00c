"""What training costs: loss, gradients and whole updates, each compiled, run once and then timed until it is done.

    forward          the loss alone
    gradient         of all parameters
    expert_gradient  of the action expert and the projections; vision tower and VLM are frozen
    full             the update of pi05_b1k
    flow_samples_8   the same with eight draws of noise and time per sample
    expert_only      the update of pi05_b1k_expert
    lora             the update of pi05_b1k_lora

Weights and the batch are random; all three cameras are there, and 200 tokens of each prompt count.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from openpi_b1k import sharding
from openpi_b1k.benchmarks.training_settings import (
    ADAPTERS,
    BATCH_SIZES,
    MODELS,
    PROMPT_TOKENS,
    Name,
    TrainingSettings,
)
from openpi_b1k.config.optimization import NO_AUGMENTATION
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.training import devices, plan_choice
from openpi_b1k.training.accumulation import loss_and_gradients
from openpi_b1k.training.flops import flops_per_sample
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import TrainState, abstract_state, full, random_state, shardings_of, step_key
from openpi_b1k.training.step import train_step
from openpi_b1k.typing import PyTree

FULL_SIZE_TFLOP = 13.5
"""Of a sample's forward and backward pass at full size with three cameras of 224 px and 200 prompt tokens: what the
model's utilisation is counted with, whatever is frozen, so that numbers of different programs can be compared."""
MATMUL_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Row:
    """What one program costs."""

    name: str
    device: str
    batch_size: int
    remat: str
    microbatches: int
    median_s: float
    spread: float
    """Slowest turn over the fastest."""
    samples_per_s: float
    to_forward: float | None
    """Time as a multiple of the forward pass in the same run."""
    mfu: float | None
    """At FULL_SIZE_TFLOP per sample, of what the devices can do at most; None where either is not known."""
    of_matmul: float
    """Operations of this program per second, of those of a large matrix product in the same run."""
    memory_gb: float
    """Of a device, as the compiler planned it: what goes in, what comes out and what lies between."""
    compile_s: float


def recipe(settings: TrainingSettings, name: Name) -> TrainConfig:
    """Returns what is trained in the row `name`."""
    config = TrainConfig(
        weights="none",
        model=dataclasses.replace(MODELS[settings.size], remat=settings.remat),
        augmentation=NO_AUGMENTATION,
        batch_size=settings.batch_size or BATCH_SIZES[settings.size] * jax.device_count(),
    )
    match name:
        case "expert_gradient" | "expert_only":
            return dataclasses.replace(config, train_expert_only=True)
        case "lora":
            model = dataclasses.replace(config.model, lora=ADAPTERS)
            return dataclasses.replace(config, model=model, freeze=("vision", "language", "action_expert"))
        case "flow_samples_8":
            return dataclasses.replace(config, flow_samples=8)
        case _:
            return config


def random_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> Batch:
    """Returns a batch of random numbers, everything in it valid but the prompts' padding."""
    keys = iter(jax.random.split(jax.random.key(0), 2 + len(CAMERAS) + 1))
    b, model = config.batch_size, config.model
    shape = (b, model.image_size, model.image_size, 3)
    tokens = (b, model.max_prompt_tokens)
    observation = Observation(
        images={camera.name: jax.random.randint(next(keys), shape, 0, 256, jnp.uint8) for camera in CAMERAS},
        image_masks={camera.name: jnp.ones(b, bool) for camera in CAMERAS},
        state=jax.random.normal(next(keys), (b, model.action_dim)),
        prompt_tokens=jax.random.randint(next(keys), tokens, 0, model.vocab_size, jnp.int32),
        prompt_mask=jnp.broadcast_to(jnp.arange(tokens[1]) < PROMPT_TOKENS, tokens),
    )
    actions = (b, model.action_horizon, model.action_dim)
    batch = Batch(observation, jax.random.normal(next(keys), actions), jnp.ones(actions, bool))
    return jax.device_put(batch, sharding.batch_sharding(mesh))


def timed(program: Callable[..., Any], turns: int, *arguments: PyTree) -> list[float]:
    """Returns the seconds of each turn after the first, each until its results are there.

    A program that takes a state and returns the next one gets that in the next turn.
    """
    seconds = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
        if isinstance(result, tuple) and isinstance(result[0], TrainState):
            arguments = (result[0], *arguments[1:])
    return seconds[1:]


def matmul_flops(dtype: str, turns: int) -> float:
    """Returns the operations per second of a large square matrix product on one device."""
    x = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), dtype)
    return 2 * MATMUL_SIZE**3 / min(timed(jax.jit(jnp.matmul), 3 * turns, x, x))


def measure(settings: TrainingSettings) -> list[Row]:
    """Returns a row per name.

    Raises:
        ValueError: a full-size model on a CPU, or one that does not fit into the devices' memory.
    """
    if settings.size == "full" and jax.default_backend() == "cpu":
        raise ValueError(
            "--size full needs a GPU, and JAX finds none (CUDA: uv sync --extra cuda12); here: --size reduced"
        )
    peak = matmul_flops(MODELS[settings.size].dtype, settings.turns)
    rows: list[Row] = []
    for name in settings.names:
        forward = next((row.median_s for row in rows if row.name == "forward"), None)
        rows.append(_row(settings, name, peak, forward))
    return rows


def _row(settings: TrainingSettings, name: Name, matmul: float, forward_s: float | None) -> Row:
    config, memory = recipe(settings, name), devices.memory_of(jax.local_devices()[0])
    config = plan_choice.resolve(config, jax.device_count(), memory, jax.local_device_count())
    plan_choice.check(config, jax.device_count(), memory, jax.local_device_count())
    mesh = sharding.make_mesh(int(config.fsdp))
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    state = random_state(model, optimizer, config, abstract_state(model, optimizer, config, mesh))
    batch = random_batch(config, mesh)

    start = time.perf_counter()
    program = _program(name, model, config, state).lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    seconds = timed(program, settings.turns, state, batch)
    median = statistics.median(seconds)
    samples_per_s, kind = config.batch_size / median, jax.devices()[0].device_kind
    peak = devices.peak_flops(kind)
    flops = flops_per_sample(config) / (3 if name == "forward" else 1)
    is_full_size = settings.size == "full"
    return Row(
        name=name,
        device=f"{jax.device_count()} x {kind}",
        batch_size=config.batch_size,
        remat=config.model.remat,
        microbatches=int(config.microbatches),
        median_s=median,
        spread=max(seconds) / min(seconds),
        samples_per_s=samples_per_s,
        to_forward=None if forward_s is None else median / forward_s,
        mfu=samples_per_s * FULL_SIZE_TFLOP * 1e12 / (peak * jax.device_count()) if peak and is_full_size else None,
        of_matmul=flops * samples_per_s / jax.device_count() / matmul,
        memory_gb=_planned_bytes(program) / 1e9,
        compile_s=compile_s,
    )


def _program(name: Name, model: Model, config: TrainConfig, state: TrainState) -> Any:  # Any: jax's jitted functions
    """Returns what the row `name` measures, a jitted function of (state, batch)."""
    match name:
        case "forward":

            def forward(state: TrainState, batch: Batch) -> jax.Array:
                draws = model.draw(step_key(config.seed, state.step), config.batch_size, config.flow_samples)
                return model.loss_at(full(state), batch, *draws)[0]

            return jax.jit(forward)
        case "gradient" | "expert_gradient":
            return jax.jit(loss_and_gradients(model, config))
        case _:
            replicated = sharding.replicated(model.mesh) if model.mesh is not None else None
            step = train_step(model, make_optimizer(config), config)
            return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(state), replicated))


def _planned_bytes(program: Any) -> float:  # Any: jax's compiled programs
    """Returns the bytes of a device that a compiled program needs; what it reuses counts once."""
    memory = program.memory_analysis()
    between = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + between
