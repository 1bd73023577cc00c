"""Full fine-tune on one task of 2025, turning_on_radio; another is `--data.tasks NAME`.

    uv run scripts/train.py pi05_b1k_radio --data.root DIR

From pi05_base, 30,000 steps at 2.5e-5. To go on from a policy that knows all tasks, openpi-comet's for instance:
`--weights DIR/params --norm-stats checkpoint --schedule.peak-lr 2.5e-6 --schedule.final-lr 2.5e-7 --num-steps 20000`.
Source of the numbers: openpi-comet at 4bb2aa7.
"""

import dataclasses

from configs.pi05_b1k import CONFIG as ALL_TASKS
from openpi_b1k.config.optimization import ScheduleConfig

CONFIG = dataclasses.replace(
    ALL_TASKS,
    data=dataclasses.replace(ALL_TASKS.data, tasks=("turning_on_radio",)),
    schedule=ScheduleConfig(warmup=1 / 30, peak_lr=2.5e-5, final_lr=2.5e-6),
    num_steps=30_000,
)
