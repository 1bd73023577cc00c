"""The stages of the network, read layer by layer, against the network as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.models.pi0 import Model
from openpi_b1k.models.stages import stages


def flat(params):
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def random_params(model):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, leaf.shape[-1] ** -0.5, leaf.shape), leaf.dtype),
        model.abstract_params(),
    )


@pytest.fixture(scope="module")
def inputs(batch):
    random = np.random.default_rng(3)
    noise = jnp.asarray(random.normal(size=batch.actions.shape), jnp.float32)
    return batch.observation, noise, jnp.asarray(random.uniform(size=len(noise)), jnp.float32)


@pytest.mark.parametrize("kind", ["pi05", "pi0"])
def test_the_stages_are_the_networks(model, inputs, kind):
    model = Model(dataclasses.replace(model.config, kind=kind))
    params, (observation, noise, time) = random_params(model), inputs
    found = dict(stages(flat(params).__getitem__, model.config, observation, noise, time))
    depth = model.config.vlm.depth
    layers = [f"prefix layer {i} {part}" for i in range(depth) for part in ("keys", "values")]
    assert list(found) == ["vision", *layers, "velocity", "actions"]
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}

    (keys, values), _ = model.network(params).read_prefix(observation)
    expected = {
        "velocity": model.velocity(params, observation, noise[:, None], time[:, None])[:, 0],
        "actions": model.sample_actions(params, observation, noise, num_flow_steps=model.config.num_flow_steps),
    }
    for i in range(depth):
        expected |= {f"prefix layer {i} keys": keys[i], f"prefix layer {i} values": values[i]}
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=name)
    prefix = model.network(params).embed_prefix(observation)
    images = found["vision"].reshape(len(noise), -1, model.config.vlm.width)
    np.testing.assert_allclose(images, prefix.tokens[:, : images.shape[1]], atol=1e-5)


def test_one_layer_is_read_at_a_time_and_of_the_embeddings_the_prompts_rows(model, params, inputs):
    class Recorded:
        """Stands for a memory map: notes what is taken of it."""

        def __init__(self, name, array):
            self.name, self.array = name, array

        def __getitem__(self, part):
            taken[self.name].append(len(self.array[part]))
            return self.array[part]

    arrays = flat(params)
    taken = {name: [] for name in arrays}
    list(stages(lambda name: Recorded(name, arrays[name]), model.config, *inputs))
    for name in ("vlm/layers/mlp/gate_up/kernel", "vlm/layers/attn/q/kernel"):
        assert taken[name] == [1] * model.config.vlm.depth
    assert taken["vision/layers/mlp/up/kernel"] == [1] * model.config.vision.depth
    assert taken["vlm/embedder/embedding"] == [len(np.unique(inputs[0].prompt_tokens))]
    assert taken.pop("vlm/final_norm/scale") == []  # nothing depends on it
    assert all(taken.values())
