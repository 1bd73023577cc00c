"""How training is measured, as the command line says it, and at which sizes."""

import dataclasses
from typing import Literal

from openpi_b1k.config.model import AdapterConfig, GemmaConfig, LoraConfig, ModelConfig, SiglipConfig

Name = Literal["forward", "gradient", "expert_gradient", "full", "flow_samples_8", "expert_only", "lora"]
Size = Literal["full", "reduced"]
PROMPT_TOKENS = 200
_LAYERS: dict[str, int] = {"depth": 6, "num_heads": 8, "num_kv_heads": 1, "head_dim": 64}
REDUCED = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=512, mlp_dim=2048, **_LAYERS),
    action_expert=GemmaConfig(width=256, mlp_dim=1024, **_LAYERS),
    vocab_size=2048,
    max_prompt_tokens=PROMPT_TOKENS,
    dtype="float32",
)
"""Small enough for a CPU, and with all of a full-size model's tokens."""
MODELS = {"full": ModelConfig(), "reduced": REDUCED}
BATCH_SIZES = {"full": 32, "reduced": 4}
"""Per device."""
ADAPTERS = LoraConfig(language=AdapterConfig(16, 16.0), action_expert=AdapterConfig(32, 32.0))


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How training is measured."""

    size: Size = "full"
    """full on a GPU; reduced (6 layers, width 512 and 256, float32) on a CPU."""
    names: tuple[Name, ...] = ("forward", "gradient", "expert_gradient", "full", "expert_only", "lora")
    """What is measured, in this order; forward first, for ratios to it."""
    batch_size: int | None = None
    """Over all devices; default: 4 per device at reduced size, 32 at full size."""
    remat: Literal["none", "dots", "full", "auto"] = "auto"
    """What the backward pass recomputes; auto: as the memory plan has it."""
    turns: int = 5
    """Timed, after one that is not counted."""

    def __post_init__(self) -> None:
        if self.turns < 1 or (self.batch_size is not None and self.batch_size < 1) or not self.names:
            raise ValueError(
                f"turns and batch_size must be at least 1, and names not empty; got {self.turns}, {self.batch_size}, "
                f"{self.names}"
            )
