"""The sample world in the 2026 format with a point cloud: shows in minutes that depth is read, trained on and played.

    uv run scripts/train.py pi05_b1k_sample_rgbd

ends with the closed-loop success of a sixth of pi05_b1k_sample_2026's steps, played with the environment's depth.
"""

import dataclasses

from configs import pi05_b1k_sample_2026
from openpi_b1k.config.train import CheckpointConfig

SAMPLE = pi05_b1k_sample_2026.CONFIG

CONFIG = dataclasses.replace(
    SAMPLE,
    model=dataclasses.replace(SAMPLE.model, point_clouds=True),
    data=dataclasses.replace(
        SAMPLE.data,
        modalities=("rgb", "depth"),
        transforms=dataclasses.replace(SAMPLE.data.transforms, depth_stride=45),  # 256 points of 84 x 84 pixels
        sample_demos=400,
    ),
    schedule=dataclasses.replace(SAMPLE.schedule, warmup=0.1),
    checkpoints=CheckpointConfig(save_every=1000, keep_every=None),
    num_steps=1000,
    rollouts=20,
)
