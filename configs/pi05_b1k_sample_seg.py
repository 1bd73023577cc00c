"""The sample world in the 2025 format with a segmentation image: shows in minutes that it is read and trained on.

    uv run scripts/train.py pi05_b1k_sample_seg

The image shows the button to press, and in serving it is masked; hence no rollouts.
"""

import dataclasses

from configs import pi05_b1k_sample
from openpi_b1k.config.train import CheckpointConfig

SAMPLE = pi05_b1k_sample.CONFIG

CONFIG = dataclasses.replace(
    SAMPLE,
    data=dataclasses.replace(SAMPLE.data, modalities=("rgb", "segmentation"), sample_demos=400),
    schedule=dataclasses.replace(SAMPLE.schedule, warmup=0.1),
    checkpoints=CheckpointConfig(save_every=1000, keep_every=None),
    num_steps=1000,
    rollouts=0,
)
