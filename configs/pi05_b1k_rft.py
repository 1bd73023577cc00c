"""Rejection fine-tuning as openpi-comet did it: 2025 demonstrations and successful rollouts, 0.6 to 0.4.

The rollouts are comet's (or yours, in its format): `--data.extra-sources.0.root DIR`. Start from a policy that was
fine-tuned on the demonstrations: `--weights DIR/params`, and keep its statistics with `--norm-stats checkpoint`.
Source: openpi-comet at 4bb2aa7: 20,000 steps, peak learning rate 1e-6.
"""

import dataclasses

from configs.pi05_b1k import CONFIG as DEMONSTRATIONS
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.optimization import ScheduleConfig

CONFIG = dataclasses.replace(
    DEMONSTRATIONS,
    data=dataclasses.replace(
        DEMONSTRATIONS.data,
        weight=0.6,
        extra_sources=(
            SourceConfig(
                name="rollouts",
                root="datasets/comet-1.5k",
                weight=0.4,
                validation_episodes=(),
                transforms=DEMONSTRATIONS.data.transforms,
            ),
        ),
    ),
    schedule=ScheduleConfig(warmup=0.05, peak_lr=1e-6, final_lr=1e-7),
    num_steps=20_000,
)
