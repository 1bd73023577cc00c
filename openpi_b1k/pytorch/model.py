"""pi0 and pi0.5 in plain PyTorch: an observation to keys and values, and from these a velocity or an action chunk.

The computation is that of `openpi_b1k/models`, for inference only. A network is a function that reads tensors by
openpi's names and the sizes of the model; whether all tensors are in memory is not its business (see `stages.py`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.pytorch.layers import (
    KeysValues,
    attend,
    block_mask,
    gemma_keys_values,
    gemma_mlp,
    gemma_queries,
    linear,
    positions,
    projected,
    rms_norm,
    rotation,
    score_bias,
)
from openpi_b1k.pytorch.suffix import SUFFIXES
from openpi_b1k.pytorch.vision import image_tokens, point_tokens
from openpi_b1k.pytorch.weights import EMBEDDING, EXPERT, VLM, Read, Weights, as_tensor


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch of observations as tensors on one device."""

    images: torch.Tensor
    """uint8 [b, cameras, size, size, 3], cameras by name."""
    image_masks: torch.Tensor
    """bool [b, cameras]: whether an image is there."""
    state: torch.Tensor
    """float32 [b, ad], normalised, zero-padded."""
    prompt_tokens: torch.Tensor
    """Integers [b, t]."""
    prompt_mask: torch.Tensor
    """bool [b, t]: whether a token is part of the prompt, not padding."""
    point_cloud: torch.Tensor | None
    """float32 [b, g, p, 3] in m, or none."""

    @classmethod
    def of(cls, fields: Mapping[str, Any], device: torch.device | str) -> "Inputs":  # Any: what NumPy takes for arrays
        """Returns the fields of an `openpi_b1k.observation.Observation`, batched NumPy arrays, as tensors."""

        def tensor(values: Any) -> torch.Tensor:  # Any: as above
            return as_tensor(np.asarray(values)).to(device)

        names, points = sorted(fields["images"]), fields.get("point_cloud")
        return cls(
            images=tensor(np.stack([fields["images"][name] for name in names], axis=1)),
            image_masks=tensor(np.stack([fields["image_masks"][name] for name in names], axis=1)),
            state=tensor(fields["state"]),
            prompt_tokens=tensor(fields["prompt_tokens"]),
            prompt_mask=tensor(fields["prompt_mask"]),
            point_cloud=None if points is None else tensor(points),
        )


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What the action expert sees of an observation; computed once for all Euler steps."""

    keys_values: list[KeysValues]
    """Of every VLM layer, each [b, t, k, h]."""
    mask: torch.Tensor
    """bool [b, t]: whether a prefix token is there."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A model of one size as a function of the tensors that `read` returns."""

    config: ModelConfig
    read: Read
    dtype: torch.dtype
    """Of the activations."""

    @property
    def weights(self) -> Weights:
        """All tensors, by openpi's names."""
        return Weights(self.read)

    def image_tokens(self, inputs: Inputs) -> torch.Tensor:
        """Returns the tokens [b * cameras, t, d] of all images, the cameras of each observation in turn."""
        return image_tokens(self.weights, self.config.vision, inputs.images.flatten(0, 1), self.dtype)

    def prefix_tokens(self, tokens: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all tokens of the prefix [b, t, d], given those of the images, and which are there [b, t].

        Raises:
            ValueError: the observation has a point cloud and the model cannot see it, or the other way round.
        """
        b, num_cameras = inputs.image_masks.shape
        masks = [inputs.image_masks.repeat_interleave(tokens.shape[1], dim=1)]
        groups = [tokens.reshape(b, num_cameras * tokens.shape[1], -1)]
        if (inputs.point_cloud is not None) != self.config.point_clouds:
            has = "has none" if inputs.point_cloud is None else "has one"
            raise ValueError(
                f"point cloud: the observation {has}, but the model has point_clouds {self.config.point_clouds}: "
                "data.modalities and model.point_clouds must agree"
            )
        if inputs.point_cloud is not None:
            groups.append(point_tokens(self.weights.at("point_cloud."), inputs.point_cloud, self.dtype))
            masks.append(torch.ones(groups[-1].shape[:2], dtype=torch.bool, device=tokens.device))
        rows = torch.nn.functional.embedding(inputs.prompt_tokens, self.read(EMBEDDING)).float()
        groups.append((rows * torch.tensor(rows.shape[-1], dtype=torch.float32).sqrt()).to(self.dtype))
        masks.append(inputs.prompt_mask)
        return torch.cat(groups, dim=1), torch.cat(masks, dim=1)

    def vlm_layers(self, x: torch.Tensor, mask: torch.Tensor) -> Iterator[KeysValues]:
        """Yields each VLM layer's keys and values of the prefix tokens `x`; what follows the last ones is left out."""
        config = self.config.vlm
        by = rotation(positions(mask), config.head_dim)
        bias = score_bias(mask[:, None].expand(-1, x.shape[1], -1), x.dtype)
        for i in range(config.depth):
            layer = self.weights.at(f"{VLM}layers.{i}.")
            attention, normed = layer.at("self_attn."), rms_norm(layer.at("input_layernorm."), x)
            keys, values = gemma_keys_values(attention, config, normed, by)
            yield keys, values
            if i < config.depth - 1:
                gathered = attend(gemma_queries(attention, config, normed, by), keys, values, bias)
                x = x + projected(attention("o_proj.weight"), gathered)
                x = x + gemma_mlp(layer.at("mlp."), rms_norm(layer.at("post_attention_layernorm."), x))

    def read_prefix(self, inputs: Inputs) -> Prefix:
        """Returns what the action expert sees of the observations.

        Raises:
            ValueError: as `prefix_tokens`.
        """
        x, mask = self.prefix_tokens(self.image_tokens(inputs), inputs)
        return Prefix(list(self.vlm_layers(x, mask)), mask)

    def velocity_after(
        self, prefix: Prefix, state: torch.Tensor, noisy_actions: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """Returns the float32 velocity [b, ah, ad] of noisy actions [b, ah, ad] at flow times [b]."""
        config, suffix = self.config.action_expert, SUFFIXES[self.config.kind]
        tokens, condition = suffix.embed(self.weights, config.width, state, noisy_actions, time)
        x, num_actions = tokens.to(self.dtype), noisy_actions.shape[1]
        starts_block = (True,) * (suffix.num_state_tokens + 1) + (False,) * (num_actions - 1)
        own = block_mask(starts_block, x.device).expand(len(x), -1, -1)
        bias = score_bias(torch.cat([prefix.mask[:, None].expand(-1, x.shape[1], -1), own], dim=-1), x.dtype)
        start = prefix.mask.sum(-1, keepdim=True)
        by = rotation(positions(torch.ones_like(x[..., 0]), start), config.head_dim)
        for i, (prefix_keys, prefix_values) in enumerate(prefix.keys_values):
            layer = self.weights.at(f"{EXPERT}layers.{i}.")
            attention = layer.at("self_attn.")
            normed, gate = suffix.norm(layer.at("input_layernorm."), x, condition)
            keys, values = gemma_keys_values(attention, config, normed, by)
            keys, values = torch.cat([prefix_keys, keys], dim=1), torch.cat([prefix_values, values], dim=1)
            gathered = attend(gemma_queries(attention, config, normed, by), keys, values, bias)
            x = add_gated(x, projected(attention("o_proj.weight"), gathered), gate)
            normed, gate = suffix.norm(layer.at("post_attention_layernorm."), x, condition)
            x = add_gated(x, gemma_mlp(layer.at("mlp."), normed), gate)
        out, _ = suffix.norm(self.weights.at(f"{EXPERT}norm."), x, condition)
        return linear(self.weights.at("action_out_proj."), out[:, suffix.num_state_tokens :].float())

    def velocity(self, inputs: Inputs, noisy_actions: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Returns the float32 velocity [b, ah, ad] of noisy actions [b, ah, ad] at flow times [b].

        Raises:
            ValueError: as `prefix_tokens`.
        """
        return self.velocity_after(self.read_prefix(inputs), inputs.state, noisy_actions, time)

    def sample_actions(self, inputs: Inputs, noise: torch.Tensor, *, num_flow_steps: int | None = None) -> torch.Tensor:
        """Returns the action chunk [b, ah, ad] that `noise` flows to, normalised as in training.

        Args:
            inputs: the observations.
            noise: float32 [b, ah, ad].
            num_flow_steps: Euler steps; default: the config's.

        Raises:
            ValueError: fewer than one step is asked for, or as `prefix_tokens`.
        """
        num_flow_steps = self.config.num_flow_steps if num_flow_steps is None else num_flow_steps
        return self.integrate(self.read_prefix(inputs), inputs.state, noise, num_flow_steps)

    def integrate(self, prefix: Prefix, state: torch.Tensor, noise: torch.Tensor, num_flow_steps: int) -> torch.Tensor:
        """Returns the actions that `noise` flows to: equal Euler steps from time 1 to 0, summed in float32 as openpi's.

        Raises:
            ValueError: fewer than one step is asked for.
        """
        if num_flow_steps < 1:
            raise ValueError(f"num_flow_steps must be at least 1; got {num_flow_steps}")
        step_size, time, x = np.float32(-1 / num_flow_steps), np.float32(1), noise.float()
        for _ in range(num_flow_steps):
            times = torch.full((len(x),), float(time), device=x.device)
            x = x + float(step_size) * self.velocity_after(prefix, state, x, times)
            time += step_size
        return x


def add_gated(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Returns `x + gate * update`, computed in float32, in the type of `x`."""
    return (x.float() + gate * update.float()).to(x.dtype)
