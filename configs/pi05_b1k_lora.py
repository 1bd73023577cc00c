"""LoRA: adapters on the VLM (rank 16) and the action expert (rank 32), and the projections are trained, nothing else.

    uv run scripts/train.py pi05_b1k_lora --exp-name radio --data.root DIR --data.tasks turning_on_radio

The adapters are drawn so that the first step starts from exactly the base model. Vision stays as it is; to adapt it
too, `--model.lora.vision.rank 16`. Checkpoints hold the merged weights in params/, for every reader, and the adapters
in lora/. Ranks and alphas are openpi's of its low-memory recipes.

The learning rate is eight times that of the full fine-tune: an adapter starts at zero and has to grow to a change that
whole kernels need only drift by, and the LoRA paper trains with 2e-4 where full fine-tuning of the same model took
5e-6 (arXiv 2106.09685, appendix D). The projections, which are trained as they are, share it.
"""

import dataclasses

from configs.pi05_b1k import CONFIG as FULL
from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.config.optimization import ScheduleConfig

CONFIG = dataclasses.replace(
    FULL,
    model=dataclasses.replace(
        FULL.model,
        lora=LoraConfig(
            language=AdapterConfig(rank=16, alpha=16.0),
            action_expert=AdapterConfig(rank=32, alpha=32.0),
        ),
    ),
    freeze=("vision", "language", "action_expert"),
    schedule=ScheduleConfig(warmup=1 / 30, peak_lr=2e-4, final_lr=2e-5),
    num_steps=30_000,
)
