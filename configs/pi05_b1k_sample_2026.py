"""The sample world in the 2026 format: LeRobot v3.0, 61-dim proprio, torso and arms as deltas.

    uv run scripts/train.py pi05_b1k_sample_2026

ends with `closed-loop success 0.9x (.. of 50)` on layouts it has not seen.
"""

import dataclasses

from configs import pi05_b1k_sample
from openpi_b1k.config.data import SAMPLE_TOKENIZER, TransformConfig

CONFIG = dataclasses.replace(
    pi05_b1k_sample.CONFIG,
    data=dataclasses.replace(
        pi05_b1k_sample.CONFIG.data,
        generation="2026",
        transforms=TransformConfig(
            state_layout="like_action",
            delta_fields=("torso", "left_arm", "right_arm"),
            tokenizer=SAMPLE_TOKENIZER,
        ),
    ),
)
