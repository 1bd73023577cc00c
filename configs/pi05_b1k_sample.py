"""A tiny pi0.5 from scratch on the sample world, 2025 format: data, training and rollouts in minutes on two CPU cores.

    uv run scripts/train.py pi05_b1k_sample

ends with `closed-loop success 0.9x (.. of 50)` on layouts it has not seen.
"""

from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.model import GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.config.optimization import NO_AUGMENTATION, OptimizerConfig, ScheduleConfig
from openpi_b1k.config.train import CheckpointConfig, TrainConfig

GEMMA = GemmaConfig(width=64, depth=2, mlp_dim=256, num_heads=4, num_kv_heads=4, head_dim=32)

CONFIG = TrainConfig(
    weights="none",
    model=ModelConfig(
        vision=SiglipConfig(width=64, depth=1, mlp_dim=256, num_heads=4, patch_size=28),
        vlm=GEMMA,
        action_expert=GEMMA,
        vocab_size=1024,
        image_size=56,
        action_horizon=8,
        max_prompt_tokens=48,
        dtype="float32",
        remat="none",
    ),
    data=DataConfig(
        source="sample",
        generation="2025",
        transforms=TransformConfig(state_layout="grippers_last", tokenizer=SAMPLE_TOKENIZER),
        sample_demos=1200,
        num_workers=0,
        prefetch=8,
        frame_cache_gib=2.0,
    ),
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(warmup=1 / 60, peak_lr=2e-3, final_lr=4e-5),
    augmentation=NO_AUGMENTATION,  # a goal is a colour
    checkpoints=CheckpointConfig(save_every=2000, keep_every=None),
    batch_size=32,
    num_steps=6000,
    flow_samples=2,
    ema_decay=0.999,
    fsdp=1,
    microbatches=1,
    validation_interval=2000,
    rollouts=50,
)
