"""The network stage by stage, with one layer's weights in memory at a time: what a conversion is held against.

The layers are those of `pi0.py`; only when their weights are read is different. The action expert, a tenth of the
model, is read as a whole.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.config.model import LoraConfig, ModelConfig
from openpi_b1k.models import flow_matching
from openpi_b1k.models.gemma import KeysValues
from openpi_b1k.models.pi0 import Model, Network, all_images
from openpi_b1k.models.tokens import TokenGroup
from openpi_b1k.observation import Observation
from openpi_b1k.typing import Array, Float, Params

Read = Callable[[str], np.ndarray]
"""Our name of a parameter to its array; where that is a memory map, only the parts in use are read."""


def stages(
    read: Read,
    config: ModelConfig,
    observation: Observation,
    noise: Float[np.ndarray, "b ah ad"],
    time: Float[np.ndarray, " b"],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what the network computes, in order, each a name and a float32 array.

    "vision": tokens of all images [b * cameras, t, d], cameras by name; then for each VLM layer i "prefix layer i keys"
    and "prefix layer i values" [b, t, k, h]; "velocity" [b, ah, ad] of `noise` at `time`; "actions" [b, ah, ad] that
    `noise` flows to in `config.num_flow_steps` steps.

    Args:
        read: returns a parameter.
        config: sizes, and the type of the activations.
        observation: what the model sees.
        noise: the chunk that sampling starts from.
        time: flow time at which the velocity is taken.
    """
    dense = dataclasses.replace(config, remat="none", lora=LoraConfig())
    weights = _Weights(Model(dense), read)
    image_tokens = _vision(weights, observation)
    yield "vision", _float32(image_tokens)
    prefix = _prefix(weights, image_tokens, observation)
    of_layers = []
    for i, keys_values in enumerate(_vlm_layers(weights, prefix)):
        of_layers.append(keys_values)
        for kind, array in zip(("keys", "values"), keys_values, strict=True):
            yield f"prefix layer {i} {kind}", _float32(array[0])
    all_layers = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *of_layers)
    velocity, actions = _act(weights, (all_layers, prefix.mask), observation.state, noise, time)
    yield "velocity", _float32(velocity)
    yield "actions", _float32(actions)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The parameters of a model, which stay on disk until they are asked for."""

    model: Model
    read: Read

    def only(self, *names: str) -> Params:
        """Returns the parameters under these names, such as vision/head, and no others."""
        found: Params = {}
        for name in names:
            *parents, last = name.split("/")
            node, described = found, self.model.abstract_params()
            for parent in parents:
                node, described = node.setdefault(parent, {}), described[parent]
            node[last] = self._tree(name, described[last], slice(None))
        return found

    def layer(self, group: str, i: int) -> Params:
        """Returns the parameters of one layer of vision or vlm, stacked as if there were no other."""
        described = self.model.abstract_params()[group]["layers"]
        return {group: {"layers": self._tree(f"{group}/layers", described, slice(i, i + 1))}}

    def _tree(self, name: str, described: Any, part: slice) -> Any:  # Any: a parameter, or a nested dict of them
        if isinstance(described, dict):
            return {key: self._tree(f"{name}/{key}", child, part) for key, child in described.items()}
        return np.array(self.read(name)[part])

    def network(self, params: Params) -> Network:
        """Returns the network with `params` where they are given, and shapes alone elsewhere."""
        return self.model.network(_filled(self.model.abstract_params(), params))


def _filled(abstract: Params, params: Params) -> Params:
    return {
        name: _filled(child, params.get(name, {})) if isinstance(child, dict) else params.get(name, child)
        for name, child in abstract.items()
    }


def _vision(weights: _Weights, observation: Observation) -> Float[Array, "images t d"]:
    dtype = jnp.dtype(weights.model.config.dtype)

    @jax.jit
    def embed(params: Params, observation: Observation) -> Array:
        return weights.network(params).vision.embed(all_images(observation), dtype=dtype)

    @jax.jit
    def layer(params: Params, x: Array) -> Array:
        return weights.network(params).vision.run(x, remat="none")

    @jax.jit
    def project(params: Params, x: Array) -> Array:
        return weights.network(params).vision.project(x)

    x = embed(weights.only("vision/embedding", "vision/pos_embedding"), observation)
    for i in range(weights.model.config.vision.depth):
        x = layer(weights.layer("vision", i), x)
    return project(weights.only("vision/final_norm", "vision/head"), x)


def _prefix(weights: _Weights, image_tokens: Array, observation: Observation) -> TokenGroup:
    # Of the table of embeddings only the prompt's rows are read; the tokens then count these.
    ids, places = np.unique(np.asarray(observation.prompt_tokens), return_inverse=True)
    rows = np.array(weights.read("vlm/embedder/embedding")[ids])
    places = places.reshape(observation.prompt_tokens.shape).astype(np.int32)
    params = {"vlm": {"embedder": {"embedding": rows}}}
    if weights.model.config.point_clouds:
        params |= weights.only("point_cloud")

    @jax.jit
    def join(params: Params, image_tokens: Array, observation: Observation) -> TokenGroup:
        return weights.network(params).prefix_of(image_tokens, observation)

    return join(params, image_tokens, dataclasses.replace(observation, prompt_tokens=places))


def _vlm_layers(weights: _Weights, prefix: TokenGroup) -> Iterator[KeysValues]:
    @jax.jit
    def layer(params: Params, prefix: TokenGroup) -> tuple[Array, KeysValues]:
        return weights.network(params).vlm.run(prefix, remat="none")

    for i in range(weights.model.config.vlm.depth):
        tokens, keys_values = layer(weights.layer("vlm", i), prefix)
        yield keys_values
        prefix = dataclasses.replace(prefix, tokens=tokens)


def _act(
    weights: _Weights, prefix: tuple[KeysValues, Array], state: Array, noise: np.ndarray, time: np.ndarray
) -> tuple[Array, Array]:
    """Returns the velocity of `noise` at `time`, and the actions it flows to."""

    @jax.jit
    def run(params: Params, prefix: tuple[KeysValues, Array], state: Array, noise: Array, time: Array) -> tuple:
        network = weights.network(params)

        def velocity(noisy_actions: Array, time: Array) -> Array:
            times = jnp.broadcast_to(time, noise.shape[:1])[:, None]
            return network.suffix.velocity(network.expert_output(*prefix, state, noisy_actions[:, None], times))[:, 0]

        steps = weights.model.config.num_flow_steps
        return velocity(noise, time), flow_matching.integrate(velocity, noise, num_flow_steps=steps)

    return run(weights.only("action_expert", "suffix"), prefix, state, noise, time)


def _float32(array: Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32))
