"""What the prefix sees: images and point clouds to tokens of the VLM's width.

Source: openpi `models/siglip.py` at 15a9616 for images; point clouds are ours.
"""

import torch

from openpi_b1k.config.model import SiglipConfig
from openpi_b1k.pytorch.layers import attend, gelu, layer_norm, linear, scaled
from openpi_b1k.pytorch.weights import PROJECTOR, VISION, Weights


def image_tokens(weights: Weights, config: SiglipConfig, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the tokens [images, t, d] of uint8 images [images, size, size, 3], row by row of patches."""
    tower = weights.at(VISION)
    pixels = images.float() / 255 * 2 - 1
    kernel, position = tower("embeddings.patch_embedding.weight"), tower("embeddings.position_embedding.weight")
    x = torch.nn.functional.linear(
        patches(pixels, config.patch_size), kernel.flatten(1).float(), tower("embeddings.patch_embedding.bias").float()
    )
    x = (x + position.float()).to(dtype)
    for i in range(config.depth):
        x = siglip_layer(tower.at(f"encoder.layers.{i}."), config, x)
    return linear(weights.at(PROJECTOR), layer_norm(tower.at("post_layernorm."), x))


def siglip_layer(weights: Weights, config: SiglipConfig, x: torch.Tensor) -> torch.Tensor:
    """Returns the patches after one layer's attention and MLP."""
    normed, attention = layer_norm(weights.at("layer_norm1."), x), weights.at("self_attn.")
    heads = (config.num_heads, config.width // config.num_heads)
    queries, keys, values = (linear(attention.at(f"{name}_proj."), normed).unflatten(-1, heads) for name in "qkv")
    x = x + linear(attention.at("out_proj."), attend(scaled(queries), keys, values))
    hidden = gelu(linear(weights.at("mlp.fc1."), layer_norm(weights.at("layer_norm2."), x)))
    return x + linear(weights.at("mlp.fc2."), hidden)


def patches(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Returns images [b, size, size, 3] cut into squares, row by row: [b, t, 3 * p * p], colours outermost."""
    b, size, _, colors = images.shape
    side = size // patch_size
    cut = images.reshape(b, side, patch_size, side, patch_size, colors).permute(0, 1, 3, 5, 2, 4)
    return cut.reshape(b, side * side, colors * patch_size**2)


def point_tokens(weights: Weights, points: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns one token per group of points [b, g, p, 3]; coordinates in m enter in float32."""
    x = gelu(linear(weights.at("mlp_in."), points.float())).to(dtype)
    return linear(weights.at("mlp_out."), gelu(linear(weights.at("mlp_hidden."), x))).amax(-2)
