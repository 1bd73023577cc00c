"""As pi05_b1k, but only the action expert and the projections are trained: 0.43 of 3.36 billion parameters.

    uv run scripts/train.py pi05_b1k_expert --exp-name radio --data.root DIR --data.tasks turning_on_radio

Vision tower and VLM are stored in bfloat16, without gradients, moments or a backward pass. Any other recipe does the
same with --train-expert-only. Source of the numbers: RLinf's recipe `behavior_sft_pi05`.
"""

import dataclasses

from configs.pi05_b1k import CONFIG as FULL
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.config.train import CheckpointConfig

CONFIG = dataclasses.replace(
    FULL,
    train_expert_only=True,
    schedule=ScheduleConfig(warmup=0.05, peak_lr=2.5e-6, final_lr=2.5e-7),
    checkpoints=CheckpointConfig(save_every=2000, keep_every=None),
    num_steps=20_000,
)
