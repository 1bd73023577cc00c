"""A round of rejection fine-tuning on the sample world: demonstrations and a policy's own successes, 0.4 to 0.6.

    uv run scripts/train.py pi05_b1k_sample_rft --data.extra-sources.0.root ROLLOUTS

begins where that policy began, from nothing; docs/rollouts.md shows the whole round, and why it does not go on from the
policy itself.
"""

import dataclasses

from configs.pi05_b1k_sample import CONFIG as DEMONSTRATIONS
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.train import CheckpointConfig

CONFIG = dataclasses.replace(
    DEMONSTRATIONS,
    data=dataclasses.replace(
        DEMONSTRATIONS.data,
        weight=0.4,
        extra_sources=(
            SourceConfig(
                name="rollouts",
                root="datasets/sample-rollouts",
                weight=0.6,
                validation_episodes=(),
                transforms=DEMONSTRATIONS.data.transforms,
            ),
        ),
    ),
    checkpoints=CheckpointConfig(save_every=4000, keep_every=None),
    num_steps=4000,
    validation_interval=0,
    rollouts=0,
)
