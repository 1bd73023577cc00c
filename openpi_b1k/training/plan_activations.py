"""How many bytes the backward pass keeps for itself, read off the model's own derivative without computing anything.

JAX can say of any function which arrays its derivative keeps. Here each part of the network (vision tower, point cloud,
VLM, action expert) is asked by itself, as shapes alone, which takes a tenth of a second at full size. So remat, frozen
groups, adapters and flow samples count as they do in the real step, and a change of the model changes the plan.

What is traced has a prime number of rows. An array whose size that number divides grows with the batch; the others,
kernels cast to the activations' type for instance, do not.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from openpi_b1k.config.data import EXTRA_CAMERA
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.gemma import KeysValues
from openpi_b1k.models.layers import Remat
from openpi_b1k.models.pi0 import Model, Network
from openpi_b1k.models.tokens import TokenGroup
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.training import trainable
from openpi_b1k.typing import Array, Params, PyTree

ROWS = 1009
"""Rows of what is traced: a prime that divides no size of a model."""
NUM_POINT_GROUPS = 16
REMATS: tuple[Remat, ...] = ("none", "dots", "full")
"""From the fastest to the smallest."""

Inputs = dict[str, Any]  # Any: arrays, or pairs of them


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Memory as a linear function of a device's rows."""

    per_row: float = 0.0
    fixed: float = 0.0

    def of(self, rows: int) -> float:
        """Returns the bytes for a number of rows."""
        return self.per_row * rows + self.fixed


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the network: what goes through it, and which parameters are its own."""

    name: str
    roots: tuple[str, ...]
    """First names of its parameters."""
    depth: int
    """Equal layers it consists of."""
    inputs: Inputs
    """As shapes: what earlier parts compute comes under the names in `flowing`."""
    flowing: tuple[str, ...]
    run: Callable[[Network, Inputs], PyTree]
    """Returns what it computes."""


@dataclasses.dataclass(frozen=True)
class PartMemory:
    """What a part takes while a piece of the batch passes through it and back."""

    name: str
    saved: dict[str, Bytes]
    """Kept from the forward pass for the backward pass, by remat; nothing where there is no backward pass."""
    layer: Bytes
    """What one of its layers keeps where nothing is computed twice: the measure of what it needs for a moment."""


def part_memories(config: TrainConfig, params: Params) -> list[PartMemory]:
    """Returns what each part takes, in the order of the forward pass.

    Args:
        config: of the run, whatever its remat.
        params: all parameters as shapes, in the types they are held in.
    """
    memories, is_upstream_trained = [], False
    for part in parts(config):
        trained = trainable.select(
            params, lambda path, roots=part.roots: path.split("/")[0] in roots and trainable.is_trained(path, config)
        )
        flowing = part.flowing if is_upstream_trained else ()
        has_backward = is_upstream_trained = is_upstream_trained or bool(trained)
        if not has_backward:  # its layers still need room: as if they were trained
            trained = trainable.select(params, lambda path, roots=part.roots: path.split("/")[0] in roots)
        models = {remat: dataclasses.replace(config.model, remat=remat) for remat in REMATS}
        saved = {
            remat: kept(part, model, params, trained, flowing)
            for remat, model in models.items()
            if has_backward or remat == "none"
        }
        layer = Bytes(saved["none"].per_row / part.depth, saved["none"].fixed / part.depth)
        memories.append(PartMemory(part.name, saved if has_backward else {}, layer))
    return memories


def kept(part: Part, config: ModelConfig, params: Params, trained: Params, flowing: tuple[str, ...]) -> Bytes:
    """Returns what the derivative of a part keeps, its inputs and the parameters apart.

    Args:
        part: of the network.
        config: of the model, with the remat to ask for.
        params: all parameters as shapes.
        trained: those of them that gradients are taken of.
        flowing: names of the inputs that gradients are taken of.
    """
    model = model_of(config)
    moved = {name: part.inputs[name] for name in flowing}

    def derivative(trained: Params, moved: Inputs, params: Params, inputs: Inputs) -> PyTree:
        def run(trained: Params, moved: Inputs) -> PyTree:
            return part.run(model.network(trainable.combine(params, trained)), inputs | moved)

        return jax.vjp(run, trained, moved)[1]

    jaxpr = jax.make_jaxpr(derivative)(trained, moved, params, part.inputs).jaxpr
    given = {id(variable) for variable in jaxpr.invars}
    arrays = {id(variable): variable.aval for variable in jaxpr.outvars if id(variable) not in given}
    sizes = [math.prod(aval.shape) * aval.dtype.itemsize for aval in arrays.values()]
    grows = [size for size in sizes if size % ROWS == 0]
    return Bytes(sum(grows) / ROWS, float(sum(sizes) - sum(grows)))


@functools.lru_cache(maxsize=32)
def model_of(config: ModelConfig) -> Model:
    """Returns the model, whose shapes are then worked out once for all plans of it."""
    return Model(config)


def parts(config: TrainConfig) -> list[Part]:
    """Returns the parts of a run's network with `ROWS` rows of input."""
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    num_images = images_per_sample(config)
    num_prefix = prefix_tokens(config)
    images = jax.ShapeDtypeStruct((ROWS * num_images, model.image_size, model.image_size, 3), jnp.uint8)
    prefix = jax.ShapeDtypeStruct((ROWS, num_prefix, model.vlm.width), dtype)
    mask = jax.ShapeDtypeStruct((ROWS, num_prefix), jnp.bool_)
    keys = jax.ShapeDtypeStruct((model.vlm.depth, *prefix.shape[:2], model.vlm.num_kv_heads, model.vlm.head_dim), dtype)
    state = jax.ShapeDtypeStruct((ROWS, model.action_dim), jnp.float32)
    chunk = jax.ShapeDtypeStruct((ROWS, config.flow_samples, model.action_horizon, model.action_dim), jnp.float32)
    time = jax.ShapeDtypeStruct(chunk.shape[:2], jnp.float32)

    def see(network: Network, inputs: Inputs) -> Array:
        return network.vision(inputs["images"], dtype=dtype, remat=network.remat)

    def read(network: Network, inputs: Inputs) -> KeysValues:
        tokens = TokenGroup(inputs["prefix"], inputs["mask"], (False,) * num_prefix)
        return network.vlm.keys_values(tokens, remat=network.remat)

    def act(network: Network, inputs: Inputs) -> Array:
        noisy = (inputs["keys_values"], inputs["mask"], inputs["state"], inputs["chunk"], inputs["time"])
        return network.suffix.velocity(network.expert_output(*noisy))

    language = {"prefix": prefix, "mask": mask}
    expert = {"keys_values": (keys, keys), "mask": mask, "state": state, "chunk": chunk, "time": time}
    return [
        Part("vision", ("vision",), model.vision.depth, {"images": images}, (), see),
        *_points(config),
        Part("language", ("vlm",), model.vlm.depth, language, ("prefix",), read),
        Part("action expert", ("action_expert", "suffix"), model.vlm.depth, expert, ("keys_values",), act),
    ]


def _points(config: TrainConfig) -> list[Part]:
    """Returns the encoder of point clouds, for a model that has one."""
    if not config.model.point_clouds:
        return []
    points = jax.ShapeDtypeStruct(
        (ROWS, NUM_POINT_GROUPS, points_per_sample(config) // NUM_POINT_GROUPS, 3), jnp.float32
    )

    def encode(network: Network, inputs: Inputs) -> Array:
        return network.point_cloud(inputs["points"], dtype=jnp.dtype(config.model.dtype), remat=network.remat)

    return [Part("points", ("point_cloud",), 1, {"points": points}, (), encode)]


def images_per_sample(config: TrainConfig) -> int:
    """Returns how many images the model sees at once, segmentation included."""
    return len(config.data.cameras) + ("segmentation" in config.data.modalities)


def patches_per_image(config: TrainConfig) -> int:
    """Returns how many tokens an image becomes."""
    return (config.model.image_size // config.model.vision.patch_size) ** 2


def prefix_tokens(config: TrainConfig) -> int:
    """Returns the length of the prefix: patches of all images, groups of points, prompt."""
    model = config.model
    patches = patches_per_image(config)
    points = NUM_POINT_GROUPS if model.point_clouds else 0
    return images_per_sample(config) * patches + points + model.max_prompt_tokens


def suffix_tokens(config: TrainConfig) -> int:
    """Returns the length of the suffix: a token for the state, unless the prompt tells it, and one per action."""
    return (not config.model.state_in_prompt) + config.model.action_horizon


def points_per_sample(config: TrainConfig) -> int:
    """Returns how many points of the head camera's depth a sample has."""
    transforms = config.data.transforms
    side = r1pro(transforms.state_layout).camera(EXTRA_CAMERA).size
    return len(range(0, side, transforms.depth_stride)) ** 2
