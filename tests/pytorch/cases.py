"""Models of several kinds and sizes, as parameters of ours and as the tensors that PyTorch reads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.checkpoints import openpi_rules, pytorch_rules, safetensors
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.evaluation import parity_model
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Observation
from openpi_b1k.pytorch.model import Network
from openpi_b1k.pytorch.model_file import dtype_of
from openpi_b1k.pytorch.weights import DTYPES, EMBEDDING, as_tensor

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
    num_flow_steps=3,
    dtype="float32",
    remat="none",
)
CONFIGS = {
    "pi05": CONFIG,
    "pi0": dataclasses.replace(CONFIG, kind="pi0"),
    "points": dataclasses.replace(CONFIG, point_clouds=True),
    "one_head": dataclasses.replace(
        CONFIG,
        vlm=dataclasses.replace(GEMMA, num_kv_heads=1, depth=4),
        action_expert=dataclasses.replace(CONFIG.action_expert, num_kv_heads=1, depth=4),
    ),
}


def random_params(config):
    """Returns random parameters in which nothing is zero, unlike fresh ones, whose gates are closed."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(0, leaf.shape[-1] ** -0.5, leaf.shape).astype(np.float32),
        Model(config).abstract_params(),
    )


def random_inputs(config):
    """Returns an observation, noisy actions and times of three samples: a camera and parts of prompts are masked."""
    random = np.random.default_rng(1)
    cameras = ("head", "left_wrist", "right_wrist", "segmentation")
    images = {name: random.integers(0, 256, (3, 28, 28, 3), np.uint8) for name in reversed(cameras)}
    observation = Observation(
        images=images,
        image_masks={name: np.array([True, name != "left_wrist", True]) for name in cameras},
        state=random.normal(size=(3, config.action_dim)).astype(np.float32),
        prompt_tokens=random.integers(0, config.vocab_size, (3, 5), np.int32),
        prompt_mask=np.arange(5) < np.array([[5], [3], [1]]),
        point_cloud=random.normal(size=(3, 2, 7, 3)).astype(np.float32) if config.point_clouds else None,
    )
    noise = random.normal(size=(3, config.action_horizon, config.action_dim)).astype(np.float32)
    return observation, noise, random.uniform(size=3).astype(np.float32)


def in_jax(config, params, observation, noisy_actions, time):
    """Returns the velocity and the sampled actions of our JAX model."""
    model = Model(config)
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else "default"):
        velocity = jax.jit(model.velocity)(
            params, observation, jnp.asarray(noisy_actions)[:, None], jnp.asarray(time)[:, None]
        )
        sample = jax.jit(model.sample_actions, static_argnames="num_flow_steps")
        actions = sample(params, observation, noisy_actions, num_flow_steps=config.num_flow_steps)
    return np.asarray(velocity)[:, 0], np.asarray(actions)


def tensors_of(params):
    """Returns {key: array} of what a converted file holds, but for the tensor that nothing reads."""
    leaves = flatten(params).items()
    return {key: tensor for name, leaf in leaves for key, tensor in pytorch_rules.to_pytorch(name, np.asarray(leaf))}


def network_of(config, params):
    """Returns the PyTorch network of the parameters, cast as `model_file.load` does."""
    dtype = DTYPES[config.dtype]
    tensors = {key: as_tensor(array.copy()) for key, array in tensors_of(params).items()}
    tensors = {key: tensor if key == EMBEDDING else tensor.to(dtype_of(key, dtype)) for key, tensor in tensors.items()}
    return Network(config, tensors.__getitem__, dtype)


def write_file(directory, config, params):
    """Writes `model.safetensors` as the converter does."""
    zeros = np.zeros((config.vocab_size, config.action_expert.width), np.float32)
    arrays = tensors_of(params) | {pytorch_rules.FILLED_WITH_ZEROS: zeros}
    entries = {key: (array.dtype, array.shape) for key, array in arrays.items()}
    with safetensors.Writer(directory / safetensors.FILE, entries, {}) as writer:
        for key, array in arrays.items():
            writer.write(key, array)


def stored_model(path):
    """Returns config, our parameters and the reference itself of a stored model of openpi's."""
    reference = dict(np.load(path))
    config = parity_model.model_config(json.loads(bytes(reference["meta"])), reference)
    leaves = {name.removeprefix("params/"): leaf for name, leaf in reference.items() if name.startswith("params/")}
    return config, openpi_rules.from_openpi(unflatten(leaves)), reference


def stored_observation(reference):
    """Returns a reference's inputs as NumPy arrays."""
    return jax.tree.map(np.asarray, parity_model.stored_batch(reference).observation)
