"""Configs of the tests of the data room."""

import dataclasses
import pathlib

from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.config.train import TrainConfig

NAMES = {"2025": "b1k_2025", "2026": "lerobot_v30"}
HORIZONS = {"2025": 32, "2026": 16}


def make_config(generation: str, root: pathlib.Path | None, **data) -> TrainConfig:
    transforms = TransformConfig(tokenizer=SAMPLE_TOKENIZER)
    return TrainConfig(
        weights="none",
        model=ModelConfig(
            vision=SIGLIP_TINY,
            vlm=GEMMA_TINY,
            action_expert=GEMMA_TINY,
            vocab_size=1024,
            image_size=56,
            action_horizon=HORIZONS[generation],
            max_prompt_tokens=192,
        ),
        data=dataclasses.replace(
            DataConfig(generation=generation, root=str(root) if root else None, transforms=transforms, num_workers=0),
            **data,
        ),
        schedule=ScheduleConfig(warmup=0.0),
        batch_size=8,
        num_steps=10,
    )
