"""State, noisy actions and flow time to suffix tokens and condition, for the two kinds of model, and their norms.

Source: openpi `models/pi0.py` at 15a9616.
"""

import math
from typing import Protocol

import torch
from torch.nn.functional import silu

from openpi_b1k.pytorch.layers import linear, rms_norm, rms_normalize
from openpi_b1k.pytorch.weights import Weights

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time embedding, in units of flow time


def time_embedding(time: torch.Tensor, width: int) -> torch.Tensor:
    """Returns float32 sines, then cosines, [b, width] of flow time [b]."""
    # On the CPU, so that every device has the same bits: angles reach 1571 rad, where float32 is coarse.
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** torch.linspace(0.0, 1.0, width // 2, dtype=torch.float32)
    angle = time.float()[:, None] * (1.0 / period * 2 * math.pi).to(time.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Suffix(Protocol):
    """What a kind of model makes of the noisy actions, and how its expert normalises."""

    num_state_tokens: int
    """Tokens before those of the actions, in a block of their own."""

    def embed(
        self, weights: Weights, width: int, state: torch.Tensor, noisy_actions: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the float32 tokens [b, t, d] and the float32 condition of the norms [b, c]."""
        ...

    def norm(self, weights: Weights, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `x` normalised, in its type, and the float32 gate for what is computed from it."""
        ...


class Pi05Suffix:
    """pi0.5: one token per action; the time enters by adaptive norms."""

    num_state_tokens = 0

    def embed(
        self, weights: Weights, width: int, state: torch.Tensor, noisy_actions: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns one token per action and what the norms make scale, shift and gate of."""
        del state  # it is in the prompt
        condition = silu(linear(weights.at("time_mlp_in."), time_embedding(time, width)))
        condition = silu(linear(weights.at("time_mlp_out."), condition))
        return linear(weights.at("action_in_proj."), noisy_actions.float()), condition

    def norm(self, weights: Weights, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `x` normalised and modulated by the condition, and the gate."""
        scale, shift, gate = linear(weights.at("dense."), condition)[:, None].chunk(3, dim=-1)
        return (rms_normalize(x) * (1 + scale) + shift).to(x.dtype), gate


class Pi0Suffix:
    """pi0: a token of the state, which sees no action, then the actions, each with the time mixed in."""

    num_state_tokens = 1

    def embed(
        self, weights: Weights, width: int, state: torch.Tensor, noisy_actions: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the state's token and one per action, and a condition without entries."""
        state_token = linear(weights.at("state_proj."), state.float())[:, None]
        actions = linear(weights.at("action_in_proj."), noisy_actions.float())
        times = time_embedding(time, width)[:, None].expand_as(actions)
        hidden = silu(linear(weights.at("action_time_mlp_in."), torch.cat([actions, times], dim=-1)))
        actions = linear(weights.at("action_time_mlp_out."), hidden)
        return torch.cat([state_token, actions], dim=1), time.new_zeros(len(time), 0)

    def norm(self, weights: Weights, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `x` normalised, and an open gate."""
        del condition
        return rms_norm(weights, x), torch.ones((), device=x.device)


SUFFIXES: dict[str, Suffix] = {"pi05": Pi05Suffix(), "pi0": Pi0Suffix()}
"""By `ModelConfig.kind`."""
