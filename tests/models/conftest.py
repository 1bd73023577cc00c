"""A tiny model with two key/value heads, its parameters, and a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.typing import Params

GEMMA = dataclasses.replace(GEMMA_TINY, num_heads=4, num_kv_heads=2)
CONFIG = ModelConfig(
    vision=SIGLIP_TINY,
    vlm=GEMMA,
    action_expert=dataclasses.replace(GEMMA, width=16, mlp_dim=24),
    vocab_size=64,
    image_size=28,
    action_dim=6,
    action_horizon=4,
    max_prompt_tokens=5,
    num_flow_steps=2,
    dtype="float32",
    remat="none",
)


both_kinds = pytest.mark.parametrize("model", ["pi05", "pi0"], indirect=True, scope="session")
"""Runs a test with either kind of model, and with the fixtures made of it."""


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Model:
    """Returns the model of the kind asked for, pi0.5 by default."""
    return Model(dataclasses.replace(CONFIG, kind=getattr(request, "param", "pi05")))


@pytest.fixture(scope="session")
def params(model: Model) -> Params:
    """Returns random parameters in which nothing is zero, unlike fresh ones, whose gates are closed."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, leaf.shape[-1] ** -0.5, leaf.shape), leaf.dtype),
        model.abstract_params(),
    )


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Returns four samples: one without its right wrist, and prompts of different lengths."""
    keys = jax.random.split(jax.random.key(1), 6)
    cameras = ("head", "left_wrist", "right_wrist")
    images = {
        name: jax.random.randint(key, (4, 28, 28, 3), 0, 256).astype(jnp.uint8)
        for name, key in zip(cameras, keys, strict=False)
    }
    masks = dict.fromkeys(cameras, jnp.ones(4, bool)) | {"right_wrist": jnp.array([True, False, True, True])}
    observation = Observation(
        images=images,
        image_masks=masks,
        state=jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32),
        prompt_tokens=jax.random.randint(keys[3], (4, 5), 0, 64),
        prompt_mask=jnp.arange(5) < jnp.array([[5], [3], [4], [1]]),
    )
    actions = jax.random.normal(keys[4], (4, 4, 6))
    return Batch(observation, actions, jax.random.bernoulli(keys[5], 0.7, (4, 4, 6)))
