"""Full fine-tune of pi0 on the 2025 demonstrations, all 50 tasks: pi05_b1k with the older model.

    uv run scripts/train.py pi0_b1k --exp-name all50 --data.root DIR --fsdp 8

pi0 is given the state as numbers instead of reading it in its prompt. 128 prompt tokens leave a task's text the room it
has in pi0.5's 224 beside 23 numbers of up to four tokens each; openpi's 48 would be too few for the longest prompts.
Values are normalised by quantiles, as pi05_b1k's; openpi's own recipes for pi0 take mean and standard deviation, which
is `--data.transforms.normalization zscore`.
"""

import dataclasses

from configs.pi05_b1k import CONFIG as PI05

CONFIG = dataclasses.replace(
    PI05,
    weights="gs://openpi-assets/checkpoints/pi0_base/params",
    model=dataclasses.replace(PI05.model, kind="pi0", max_prompt_tokens=128),
)
