"""A few steps of a tiny model on random numbers: seconds, to see that an installation works."""

from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.config.optimization import NO_AUGMENTATION, ScheduleConfig
from openpi_b1k.config.train import CheckpointConfig, TrainConfig

CONFIG = TrainConfig(
    weights="none",
    model=ModelConfig(
        vision=SIGLIP_TINY,
        vlm=GEMMA_TINY,
        action_expert=GEMMA_TINY,
        vocab_size=1024,
        image_size=28,
        action_horizon=8,
        max_prompt_tokens=64,
        dtype="float32",
        remat="none",
    ),
    data=DataConfig(source="random", transforms=TransformConfig(tokenizer=SAMPLE_TOKENIZER), num_workers=0),
    schedule=ScheduleConfig(warmup=0.1, peak_lr=1e-3, final_lr=1e-4),
    augmentation=NO_AUGMENTATION,
    checkpoints=CheckpointConfig(save_every=10, keep_every=None),
    batch_size=8,
    num_steps=20,
    fsdp=1,
    microbatches=1,
    log_every=5,
    validation_interval=0,  # random numbers hold nothing out
)
