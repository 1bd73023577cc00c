"""As pi05_b1k_2026, with a point cloud: the head camera's depth becomes 16 tokens before the prompt's.

    uv run scripts/train.py pi05_b1k_rgbd --exp-name all100 --data.root DIR --fsdp 8

The encoder's 3,152,896 parameters are not among the published weights and start from random numbers, which is logged;
openpi cannot read the checkpoints, as their checkpoint.json says. Serving needs an evaluator that sends depth_linear.
"""

import dataclasses

from configs import pi05_b1k_2026

CONFIG = dataclasses.replace(
    pi05_b1k_2026.CONFIG,
    model=dataclasses.replace(pi05_b1k_2026.CONFIG.model, point_clouds=True),
    data=dataclasses.replace(pi05_b1k_2026.CONFIG.data, modalities=("rgb", "depth")),
)
