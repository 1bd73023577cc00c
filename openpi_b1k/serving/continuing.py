"""Chunks that continue what is being executed: how samplers are led to, and how a raw sample carries it to them.

A server puts two entries beside a raw sample's own, `continuation` and `guidance`. A policy turns the known actions
into what its model works with, and its backend makes a guide of them, see `serving/guides.py`.
"""

import dataclasses
from typing import Any

import numpy as np

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.robots.layout import Layout
from openpi_b1k.serving import inpainting
from openpi_b1k.serving.chunking import execution_horizon
from openpi_b1k.serving.executor import Continuation

CARRIED = ("continuation", "guidance")
"""Entries of a raw sample, and of the model sample made of it, that no transform looks at."""


@dataclasses.dataclass(frozen=True)
class RealTimeGuidance:
    """Real-time chunking: the next chunk agrees with all that is left of the plan, less and less (models/realtime)."""

    max_weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class InpaintingGuidance:
    """Soft inpainting: the next chunk begins with a few kept actions (models/inpainting). Equal to itself alone."""

    num_kept: int
    min_time: float
    """Flow time above which they are held."""
    gain: np.ndarray | None
    """float32 [u, o], how the later entries follow the kept ones; None: not at all."""


Guidance = RealTimeGuidance | InpaintingGuidance


def guidance_for(config: ExecutionConfig, layout: Layout, action_horizon: int) -> Guidance | None:
    """Returns how a policy's chunks continue one another when they are executed like that; None: they do not.

    Args:
        config: how chunks are executed.
        layout: of the robot's actions.
        action_horizon: actions per chunk.

    Raises:
        FileNotFoundError: the file with the correlation of chunks is missing.
        ValueError: it does not fit chunks of that size, or the config asks for more actions than they have.
    """
    execution_horizon(config, action_horizon)  # refuses numbers that do not go together
    if config.kind == "real_time":
        return RealTimeGuidance(config.max_guidance)
    if not config.kept_actions:
        return None
    gain = None
    if config.correlation is not None:
        correlation = inpainting.read_correlation(config.correlation, action_horizon, layout.size)
        gain = inpainting.gain(correlation, config.kept_actions, layout.size)
    return InpaintingGuidance(config.kept_actions, config.inpaint_until, gain)


def blank_continuation(guidance: Guidance, layout: Layout) -> Continuation:
    """Returns known actions, all zero, to warm up on."""
    num_known = guidance.num_kept if isinstance(guidance, InpaintingGuidance) else 1
    return Continuation(np.zeros((num_known, layout.size), np.float32), num_fixed=num_known)


def with_continuation(sample: dict[str, Any], continuation: Continuation, action_horizon: int) -> dict[str, Any]:
    """Returns the raw sample with the known actions as `actions` [ah, a], the input unchanged.

    The input pipeline makes of them what the sampler compares with: relative to the new observation's state, normalised
    (and limited) as in training, and padded to the model; `is_pad` [ah] is true from the first unknown step on, where
    the last known action stands. `is_continuation` tells such a sample from one of training.

    Raises:
        ValueError: more actions are known than a chunk has.
    """
    known = continuation.actions
    num_unknown = action_horizon - len(known)
    if num_unknown < 0:
        raise ValueError(f"{len(known)} actions are to be continued in a chunk of {action_horizon}")
    actions = np.concatenate([known, np.repeat(known[-1:], num_unknown, axis=0)])
    return sample | {
        "actions": actions,
        "is_pad": np.arange(action_horizon) >= len(known),
        "is_continuation": True,
    }
