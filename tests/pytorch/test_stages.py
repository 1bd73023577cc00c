import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows needs torch

from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.models import stages as jax_stages
from openpi_b1k.pytorch.model import Inputs
from openpi_b1k.pytorch.stages import stages
from tests.pytorch import cases


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_the_stages_are_the_networks_and_those_of_jax(name):
    config = cases.CONFIGS[name]
    params, (observation, noise, time) = cases.random_params(config), cases.random_inputs(config)
    network = cases.network_of(config, params)
    found = dict(stages(network.read, config, observation, noise, time))
    layers = [f"prefix layer {i} {part}" for i in range(config.vlm.depth) for part in ("keys", "values")]
    assert list(found) == ["vision", *layers, "velocity", "actions"]
    assert all(array.dtype == np.float32 for array in found.values())
    inputs, start = Inputs.of(vars(observation), "cpu"), torch.tensor(noise)
    np.testing.assert_array_equal(found["vision"], network.image_tokens(inputs).numpy())
    np.testing.assert_array_equal(found["velocity"], network.velocity(inputs, start, torch.tensor(time)).numpy())
    np.testing.assert_array_equal(found["actions"], network.sample_actions(inputs, start).numpy())
    expected = dict(jax_stages.stages(flatten(params).__getitem__, config, observation, noise, time))
    assert list(found) == list(expected)
    for stage, array in found.items():
        np.testing.assert_allclose(array, expected[stage], rtol=0, atol=2e-5, err_msg=stage)


def test_one_tensor_of_the_prefix_is_held_at_a_time_and_each_is_read_once():
    config = cases.CONFIGS["one_head"]
    tensors, alive, reads, most = cases.tensors_of(cases.random_params(config)), [], [], 0

    def read(key):
        nonlocal most
        alive[:] = [one for one in alive if one() is not None]
        most = max(most, len(alive)) if ".paligemma." in key else most
        tensor = torch.tensor(tensors[key])
        reads.append(key)
        if ".paligemma." in key:
            alive.append(weakref.ref(tensor))
        return tensor

    for _ in stages(read, config, *cases.random_inputs(config)):
        pass
    assert most <= 3  # kernel, bias and position embedding of the patches
    assert len(reads) == len(set(reads))
