"""The network stage by stage, with one tensor of vision tower and VLM in memory at a time: for the gate of conversions.

The computation is that of `model.py`; only where the tensors come from is different. The action expert, a tenth of the
model, is kept, as every Euler step reads it.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.pytorch.model import Inputs, Network, Prefix
from openpi_b1k.pytorch.weights import DTYPES, Read


def stages(
    read: Read,
    model_config: ModelConfig,
    observation: object,
    noise: np.ndarray,
    time: np.ndarray,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what the network computes, in order, each a name and a float32 array. It runs on the CPU.

    "vision": tokens of all images [b * cameras, t, d], cameras by name; then for each VLM layer i "prefix layer i keys"
    and "prefix layer i values" [b, t, k, h]; "velocity" [b, ah, ad] of `noise` at `time`; "actions" [b, ah, ad] that
    `noise` flows to in the config's number of steps.

    Args:
        read: returns the tensor of a key; it is asked for most keys once, as late as possible.
        model_config: sizes of the model.
        observation: an `openpi_b1k.observation.Observation` of NumPy arrays, or what has its attributes.
        noise: float32 [b, ah, ad], the chunk that sampling starts from.
        time: float32 [b], the flow time of the velocity.
        dtype: of the activations; default: the config's.

    Raises:
        ValueError: the observation has a point cloud and the model cannot see it, or the other way round.
    """
    network = Network(model_config, read, DTYPES[model_config.dtype] if dtype is None else dtype)
    inputs = Inputs.of(vars(observation), "cpu")
    image_tokens = network.image_tokens(inputs)
    yield "vision", as_float32(image_tokens)
    x, mask = network.prefix_tokens(image_tokens, inputs)
    keys_values = []
    for i, (keys, values) in enumerate(network.vlm_layers(x, mask)):
        yield f"prefix layer {i} keys", as_float32(keys)
        yield f"prefix layer {i} values", as_float32(values)
        keys_values.append((keys, values))
    prefix, start = Prefix(keys_values, mask), torch.tensor(noise)
    network = Network(model_config, functools.cache(read), network.dtype)
    yield "velocity", as_float32(network.velocity_after(prefix, inputs.state, start, torch.tensor(time)))
    yield "actions", as_float32(network.integrate(prefix, inputs.state, start, model_config.num_flow_steps))


def as_float32(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor as a NumPy array."""
    return tensor.float().numpy()
