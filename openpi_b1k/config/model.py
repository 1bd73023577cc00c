"""Sizes of the model. One constant per published size; a new size is a new constant."""

import dataclasses
from typing import Literal

FORBID_EXTRA = {"extra": "forbid"}  # read by pydantic when a config comes back from JSON


def require_positive(config: object) -> None:
    """Raises ValueError for an int field below 1: every size in this module counts something."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # callers pass dataclasses
        value = getattr(config, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{field.name} must be at least 1; got {value}")


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One expert of the shared-attention transformer."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        require_positive(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, as positions turn pairs of entries; got {self.head_dim}, the nearest are "
                f"{self.head_dim - 1 or 2} and {self.head_dim + 1}"
            )


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """The vision tower: a ViT over square patches, projected to the VLM's width."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int = 14

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        require_positive(self)
        if self.width % self.num_heads:
            raise ValueError(f"vision width {self.width} must be a multiple of its num_heads {self.num_heads}")


# Source: openpi `models/gemma.py` and `models/siglip.py` at 15a9616.
GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256)
SIGLIP_SO400M = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16)

# Small sizes of our own, for tests and for the sample world.
GEMMA_TINY = GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
SIGLIP_TINY = SiglipConfig(width=32, depth=1, mlp_dim=64, num_heads=2)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters of one group's kernels: W + alpha / rank * A B, with B zero at first."""

    rank: int = 0
    """0: no adapters."""
    alpha: float = 16.0

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0:
            raise ValueError(f"rank must not be negative and alpha above 0; got {self.rank} and {self.alpha}")


NO_ADAPTER = AdapterConfig()
ADAPTED_PARTS = {"vision": "vision", "vlm": "language", "action_expert": "action_expert"}
"""First names of the parameters that can have adapters, and the field of LoraConfig that is theirs."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which groups have adapters on the kernels of their attention and MLPs. Source: LoRA, arXiv 2106.09685."""

    vision: AdapterConfig = NO_ADAPTER
    language: AdapterConfig = NO_ADAPTER
    action_expert: AdapterConfig = NO_ADAPTER

    __pydantic_config__ = FORBID_EXTRA

    @property
    def roles(self) -> tuple[str, ...]:
        """The groups that have adapters."""
        return tuple(field.name for field in dataclasses.fields(self) if getattr(self, field.name).rank)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """pi0.5 or pi0: SigLIP and Gemma read images and prompt, a smaller Gemma turns noise into an action chunk."""

    kind: Literal["pi05", "pi0"] = "pi05"
    """pi05 reads the state in its prompt and the flow time through adaptive norms; pi0 has a token for the state, mixes
    the time into each action's token, and has plain norms."""
    vision: SiglipConfig = SIGLIP_SO400M
    vlm: GemmaConfig = GEMMA_2B
    action_expert: GemmaConfig = GEMMA_300M
    vocab_size: int = 257152
    image_size: int = 224
    """Height and width in pixels of the square images the model sees."""
    action_dim: int = 32
    """Width of the action and state vectors of the model; the robot's are zero-padded to it."""
    action_horizon: int = 32
    """Actions predicted per chunk, in environment steps."""
    point_clouds: bool = False
    """Whether the model also sees a point cloud (16 prefix tokens), made of the head camera's depth."""
    max_prompt_tokens: int = 224
    """Prompts are padded to this length; one that could be longer is refused at start."""
    num_flow_steps: int = 10
    """Euler steps when sampling."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations. Parameters are float32."""
    remat: Literal["none", "dots", "full", "auto"] = "auto"
    """What the layers' backward pass recomputes: nothing, all but matrix products, everything; auto: as the
    memory plan has it cheapest."""
    lora: LoraConfig = LoraConfig()

    __pydantic_config__ = FORBID_EXTRA

    @property
    def state_in_prompt(self) -> bool:
        """Whether the prompt tells the state, rather than a token of its own."""
        return self.kind == "pi05"

    def __post_init__(self) -> None:
        require_positive(self)
        vlm, expert = self.vlm, self.action_expert
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            if getattr(vlm, name) != getattr(expert, name):
                raise ValueError(
                    f"vlm and action_expert share one attention, so {name} must be equal; "
                    f"got {getattr(vlm, name)} and {getattr(expert, name)}"
                )
        if expert.width % 2:
            raise ValueError(
                f"action_expert.width must be even, for sines and cosines of the flow time; got {expert.width}, the "
                f"nearest are {expert.width - 1 or 2} and {expert.width + 1}"
            )
        if self.image_size % self.vision.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of vision.patch_size {self.vision.patch_size}"
            )
