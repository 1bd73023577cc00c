"""Small models to convert."""

import dataclasses
import pathlib

import numpy as np

from configs import debug
from openpi_b1k.checkpoints import safetensors
from openpi_b1k.config.model import GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.config.train import TrainConfig

# The sizes of the stored checkpoint: fixtures' README, `meta` of pi05_f32.npz.
STORED = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    action_expert=GemmaConfig(width=32, depth=4, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16),
    vocab_size=512,
    max_prompt_tokens=24,
    num_flow_steps=2,
    dtype="float32",
)


def recipe(model: ModelConfig = STORED) -> TrainConfig:
    """Returns a config as a recipe would give it."""
    return dataclasses.replace(debug.CONFIG, name="stored", model=model)


def tensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a file."""
    file = safetensors.open_file(path)
    return {key: np.array(file.read(key)) for key in file.tensors}
