"""Full fine-tune of pi0.5 on the 2026 demonstrations, 100 tasks; torso and arms as deltas.

    uv run scripts/train.py pi05_b1k_2026 --exp-name all100 --data.root DIR --fsdp 8

As the official 2026 baseline but for quantile normalisation: the state is digitised over [-1, 1] into the prompt, and
z-scores would saturate there.
"""

from openpi_b1k.config.data import DataConfig, TransformConfig
from openpi_b1k.config.train import TrainConfig

CONFIG = TrainConfig(
    data=DataConfig(
        generation="2026",
        transforms=TransformConfig(state_layout="like_action", delta_fields=("torso", "left_arm", "right_arm")),
    )
)
