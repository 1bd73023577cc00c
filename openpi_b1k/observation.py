"""The contract between data, models and serving: what one batch holds."""

import dataclasses

import jax

from openpi_b1k.typing import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
    """What the policy sees, batched. Images are uint8 up to the model, which maps them to [-1, 1]."""

    images: dict[str, Array]
    """Camera name, or segmentation -> UInt8[b, height, width, 3]."""
    image_masks: dict[str, Bool[Array, " b"]]
    """Camera name -> whether the image is there; a missing one moves nothing."""
    state: Float[Array, "b ad"]
    """Normalised, zero-padded."""
    prompt_tokens: Int[Array, "b t"]
    prompt_mask: Bool[Array, "b t"]
    """Whether a token is part of the prompt, not padding."""
    point_cloud: Float[Array, "b g p 3"] | None = None
    """For models that see them: x, y, z in m in the head camera's frame, in `g` groups of `p` points."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Observations with the actions that followed."""

    observation: Observation
    actions: Float[Array, "b ah ad"]
    """Normalised, zero-padded."""
    action_mask: Bool[Array, "b ah ad"]
    """Whether an entry counts in the loss: a real action dim at a step before the episode's end."""
    source: Int[Array, " b"] | None = None
    """int32, which of the config's sources a sample is of, counted from 0; None: all of the first."""
