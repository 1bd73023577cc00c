"""Full fine-tune of pi0.5 on the 2025 demonstrations, all 50 tasks, as openpi-comet's.

    uv run scripts/train.py pi05_b1k --exp-name all50 --data.root DIR --fsdp 8

Needs 40 GB for parameters and moments and 13 GB for gradients over the devices: --fsdp shares them. Source of the
numbers: openpi-comet `training/config.py` and RLinf's SFT example. Absolute actions and grippers last, so that comet's
checkpoints can be continued.
"""

from openpi_b1k.config.data import DataConfig, TransformConfig
from openpi_b1k.config.train import TrainConfig

CONFIG = TrainConfig(data=DataConfig(generation="2025", transforms=TransformConfig(state_layout="grippers_last")))
