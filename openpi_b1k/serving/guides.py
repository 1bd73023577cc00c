"""From model samples that continue a chunk to the guide of their call. One call has one kind of guide.

Samples that continue nothing take part with weight 0, or as unknown: their chunks are what they are without a guide.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from openpi_b1k.models.inpainting import Inpainting
from openpi_b1k.models.realtime import RealTimeGuide, soft_mask
from openpi_b1k.serving.continuing import InpaintingGuidance, RealTimeGuidance
from openpi_b1k.serving.policy import ModelSample

Guide = RealTimeGuide | Inpainting


def guide_of(inputs: Sequence[ModelSample]) -> Guide | None:
    """Returns what leads the chunks of a call; None if no sample continues anything.

    Raises:
        ValueError: samples are to be guided in different ways, or a sample has another number of kept actions.
    """
    continued = [one for one in inputs if "continuation" in one]
    if not continued:
        return None
    guidance = continued[0]["guidance"]
    if any(one["guidance"] != guidance for one in continued):
        raise ValueError("samples of one call must be guided in one way: the server's --execution.* is one for all")
    if isinstance(guidance, RealTimeGuidance):
        return _real_time(inputs, guidance, continued[0]["actions"].shape)
    return _inpainting(inputs, guidance, continued[0]["continuation"].actions.shape[1])


def _real_time(inputs: Sequence[ModelSample], guidance: RealTimeGuidance, shape: tuple[int, int]) -> RealTimeGuide:
    actions, weights = np.zeros((2, len(inputs), *shape), np.float32)
    for i, one in enumerate(inputs):
        if "continuation" in one:
            num_known, num_entries = one["continuation"].actions.shape
            mask = soft_mask(shape[0], delay=one["continuation"].num_fixed, overlap=num_known)
            actions[i], weights[i, :, :num_entries] = one["actions"], mask[:, None]
    return RealTimeGuide(jnp.asarray(actions), jnp.asarray(weights), max_weight=guidance.max_weight)


def _inpainting(inputs: Sequence[ModelSample], guidance: InpaintingGuidance, num_entries: int) -> Inpainting:
    actions = np.zeros((len(inputs), guidance.num_kept, num_entries), np.float32)
    is_known = np.array(["continuation" in one for one in inputs])
    for i, one in enumerate(inputs):
        if is_known[i]:
            num_known = len(one["continuation"].actions)
            if num_known != guidance.num_kept:
                raise ValueError(f"{guidance.num_kept} actions are kept of each chunk; a sample continues {num_known}")
            actions[i] = one["actions"][: guidance.num_kept, :num_entries]
    gain = None if guidance.gain is None else jnp.asarray(guidance.gain)
    return Inpainting(jnp.asarray(actions), jnp.asarray(is_known), gain, min_time=guidance.min_time)
