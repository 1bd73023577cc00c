"""Rejection fine-tuning on the sample world: demonstrations and a policy's own successes, 0.6 to 0.4.

    uv run scripts/train.py pi05_b1k_sample_rft --weights DIR/params --data.extra-sources.0.root ROLLOUTS

starts from a policy that succeeds sometimes and keeps its statistics; docs/rollouts.md shows the whole round.
"""

import dataclasses

from configs.pi05_b1k_sample import CONFIG as DEMONSTRATIONS
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.config.train import CheckpointConfig

CONFIG = dataclasses.replace(
    DEMONSTRATIONS,
    norm_stats="checkpoint",
    data=dataclasses.replace(
        DEMONSTRATIONS.data,
        weight=0.6,
        extra_sources=(
            SourceConfig(
                name="rollouts",
                root="datasets/sample-rollouts",
                weight=0.4,
                validation_episodes=(),
                transforms=DEMONSTRATIONS.data.transforms,
            ),
        ),
    ),
    schedule=ScheduleConfig(warmup=1 / 60, peak_lr=1e-3, final_lr=2e-5),
    checkpoints=CheckpointConfig(save_every=1500, keep_every=None),
    num_steps=3000,
    validation_interval=0,
)
