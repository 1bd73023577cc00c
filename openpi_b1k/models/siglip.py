"""The vision tower: SigLIP's ViT over patches, projected to the VLM's width.

Source: openpi `models/siglip.py` at 15a9616.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.config.model import NO_ADAPTER, AdapterConfig, SiglipConfig
from openpi_b1k.models import attention
from openpi_b1k.models.layers import (
    LayerNorm,
    Linear,
    Remat,
    parameter,
    run_layers,
    stack_layers,
    xavier_uniform,
)
from openpi_b1k.models.lora import SIGLIP as FACTORS
from openpi_b1k.typing import Array, Float, UInt8, typecheck


class Attention(nnx.Module):
    """Multi-head attention of all patches to all patches."""

    def __init__(self, config: SiglipConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        width = {"embed": config.width}
        heads = {"heads": config.num_heads, "head_dim": config.width // config.num_heads}
        new = functools.partial(Linear, rngs=rngs, kernel_init=xavier_uniform, adapter=adapter)
        self.q = new(width, heads, factors=FACTORS["q"])
        self.k = new(width, heads, factors=FACTORS["k"])
        self.v = new(width, heads, factors=FACTORS["v"])
        self.out = new(heads, width, factors=FACTORS["out"])

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns the attended patches; scores and softmax in float32."""
        queries = self.q(x)
        queries = (queries * queries.shape[-1] ** -0.5)[:, :, :, None]  # each head has its own keys: groups of one
        return self.out(attention.attend(queries, self.k(x), self.v(x))[:, :, :, 0])


class Mlp(nnx.Module):
    """Two linear maps around the tanh form of gelu."""

    def __init__(self, config: SiglipConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        width, hidden = {"embed": config.width}, {"mlp": config.mlp_dim}
        bias_init = nnx.initializers.normal(1e-6)
        new = functools.partial(Linear, rngs=rngs, kernel_init=xavier_uniform, bias_init=bias_init, adapter=adapter)
        self.up = new(width, hidden, factors=FACTORS["up"])
        self.down = new(hidden, width, factors=FACTORS["down"])

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns down(gelu(up(x)))."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class SiglipLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: SiglipConfig, adapter: AdapterConfig, *, rngs: nnx.Rngs):
        self.pre_attention_norm = LayerNorm(config.width, rngs=rngs)
        self.attn = Attention(config, adapter, rngs=rngs)
        self.pre_mlp_norm = LayerNorm(config.width, rngs=rngs)
        self.mlp = Mlp(config, adapter, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns the patches after attention and MLP."""
        x = x + self.attn(self.pre_attention_norm(x))
        return x + self.mlp(self.pre_mlp_norm(x))


class Siglip(nnx.Module):
    """Square images to tokens of the VLM's width."""

    def __init__(
        self,
        config: SiglipConfig,
        image_size: int,
        output_width: int,
        adapter: AdapterConfig = NO_ADAPTER,
        *,
        rngs: nnx.Rngs,
    ):
        self.patch_size = config.patch_size
        patch = {"patch_row": config.patch_size, "patch_column": config.patch_size, "color": 3}
        num_tokens = (image_size // config.patch_size) ** 2
        self.embedding = Linear(patch, {"embed": config.width}, rngs=rngs)
        pos_init = nnx.initializers.normal(config.width**-0.5)
        axes = ("one", "patches", "embed")
        self.pos_embedding = parameter(rngs, pos_init, (1, num_tokens, config.width), axes)
        self.layers = stack_layers(lambda keys: SiglipLayer(config, adapter, rngs=keys), config.depth, rngs)
        self.final_norm = LayerNorm(config.width, rngs=rngs)
        self.head = Linear({"embed": config.width}, {"projected": output_width}, rngs=rngs)

    @typecheck
    def __call__(
        self, images: UInt8[Array, "b size size 3"], *, dtype: jnp.dtype, remat: Remat
    ) -> Float[Array, "b t d"]:
        """Returns the tokens of each image, row by row of patches, with activations of type `dtype`."""
        return self.project(self.run(self.embed(images, dtype=dtype), remat=remat))

    def embed(self, images: UInt8[Array, "b size size 3"], *, dtype: jnp.dtype) -> Float[Array, "b t w"]:
        """Returns one token per patch, as the first layer reads it; pixels become [-1, 1]."""
        pixels = images.astype(jnp.float32) / 255 * 2 - 1
        return (self.embedding(patches(pixels, self.patch_size)) + self.pos_embedding[...]).astype(dtype)

    def run(self, x: Float[Array, "b t w"], *, remat: Remat) -> Float[Array, "b t w"]:
        """Returns the patches after every layer."""
        return run_layers(self.layers, lambda layer, x, _: (None, lambda: layer(x)), x, remat=remat)[0]

    def project(self, x: Float[Array, "b t w"]) -> Float[Array, "b t d"]:
        """Returns the last layer's tokens, normalised, in the VLM's width."""
        return self.head(self.final_norm(x))


def patches(images: Float[Array, "b size size 3"], patch_size: int) -> Float[Array, "b t p p 3"]:
    """Returns the images cut into squares of `patch_size` pixels, row by row."""
    b, size, _, colors = images.shape
    side = size // patch_size
    cut = images.reshape(b, side, patch_size, side, patch_size, colors).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(b, side * side, patch_size, patch_size, colors)
