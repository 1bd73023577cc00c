"""Small runs whose memory is planned, and what the compiler says of them."""

import dataclasses

import jax
import jax.numpy as jnp

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.config.model import GemmaConfig, SiglipConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state, shardings_of
from openpi_b1k.training.step import train_step


def config(
    *, kind: str = "pi05", remat: str = "full", depth: int = 7, batch_size: int = 16, **changes: object
) -> TrainConfig:
    """Returns a run whose activations are what takes memory: many tokens, wide MLPs, deep enough for a scan."""
    gemma = GemmaConfig(width=64, depth=depth, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=32)
    expert = dataclasses.replace(gemma, width=32, mlp_dim=128)
    vision = SiglipConfig(width=48, depth=depth, mlp_dim=192, num_heads=4)
    model = dataclasses.replace(
        debug.CONFIG.model,
        kind=kind,
        vision=vision,
        vlm=gemma,
        action_expert=expert,
        image_size=56,
        max_prompt_tokens=64,
        remat=remat,
    )
    return dataclasses.replace(debug.CONFIG, model=model, batch_size=batch_size, **changes)


def compiled_bytes(config: TrainConfig, num_devices: int = 1) -> tuple[int, int]:
    """Returns (bytes of the arguments, bytes beyond them) per device of a compiled update."""
    mesh = sharding.make_mesh(config.fsdp, jax.devices()[:num_devices])
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    state = abstract_state(model, optimizer, config, mesh)
    out_shardings = (shardings_of(state), sharding.replicated(mesh))
    step = jax.jit(train_step(model, optimizer, config), donate_argnums=0, out_shardings=out_shardings)
    memory = step.lower(state, abstract_batch(config, mesh)).compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def abstract_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> Batch:
    """Returns a batch as shapes."""
    model, b = config.model, config.batch_size

    def array(shape: tuple[int, ...], dtype: object) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=sharding.batch_sharding(mesh))

    chunk = (model.action_horizon, model.action_dim)
    observation = Observation(
        images={name: array((model.image_size, model.image_size, 3), jnp.uint8) for name in config.data.cameras},
        image_masks={name: array((), bool) for name in config.data.cameras},
        state=array((model.action_dim,), jnp.float32),
        prompt_tokens=array((model.max_prompt_tokens,), jnp.int32),
        prompt_mask=array((model.max_prompt_tokens,), bool),
    )
    return Batch(observation, array(chunk, jnp.float32), array(chunk, bool), array((), jnp.int32))
