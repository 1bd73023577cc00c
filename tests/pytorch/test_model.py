"""The network in PyTorch against openpi's stored outputs and against our JAX model."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows needs torch

from openpi_b1k.pytorch import model_file
from openpi_b1k.pytorch.model import Inputs, Network
from tests.pytorch import cases


def inputs_of(observation):
    return Inputs.of(vars(observation), "cpu")


def run(network, observation, noise, time, num_flow_steps=None):
    """Returns velocity and sampled actions as NumPy arrays."""
    inputs, noise = inputs_of(observation), torch.tensor(noise)
    velocity = network.velocity(inputs, noise, torch.tensor(time))
    return velocity.numpy(), network.sample_actions(inputs, noise, num_flow_steps=num_flow_steps).numpy()


@pytest.mark.parametrize("name", ["pi05_f32", "pi05_masked_f32", "pi0_f32", "pi05_bf16"])
def test_it_computes_what_openpi_computes(data_dir, name):
    config, params, reference = cases.stored_model(data_dir / f"{name}.npz")
    network, observation = cases.network_of(config, params), cases.stored_observation(reference)
    noise, time, actions = (reference[f"input/{part}"] for part in ("noise", "time", "actions"))
    at = time[:, None, None]
    ours = {"velocity": run(network, observation, at * noise + (1 - at) * actions, time, 1)[0]}
    for steps in (3, 10):
        ours[f"actions_{steps}_steps"] = run(network, observation, noise, time, steps)[1]
    ours["loss_per_step"] = np.mean(np.square(ours["velocity"] - (noise - actions)), axis=-1)
    for quantity, value in ours.items():
        expected = reference[f"output/{quantity}"]
        atol = 2e-5 if config.dtype == "float32" else 2e-2 * np.max(np.abs(expected))
        np.testing.assert_allclose(value, expected, rtol=0, atol=atol, err_msg=quantity)


def test_it_computes_what_openpis_pytorch_computes_from_the_same_file(data_dir):
    config, _, reference = cases.stored_model(data_dir / "pi05_f32.npz")
    network = model_file.load(data_dir / "openpi_pytorch", config)
    _, actions = run(
        network, cases.stored_observation(reference), reference["input/noise"], reference["input/time"], 10
    )
    expected = np.load(data_dir / "openpi_pytorch" / "outputs.npz")["actions"]
    np.testing.assert_allclose(actions, expected, rtol=0, atol=2e-5)
    from_jax = np.load(data_dir / "openpi_checkpoint" / "expected_actions.npz")["actions"]
    np.testing.assert_allclose(actions, from_jax, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", cases.CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_computes_what_our_jax_model_computes(name, dtype):
    config = dataclasses.replace(cases.CONFIGS[name], dtype=dtype)
    params, inputs = cases.random_params(config), cases.random_inputs(config)
    found, expected = run(cases.network_of(config, params), *inputs), cases.in_jax(config, params, *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        atol = 2e-5 if dtype == "float32" else 2e-2 * np.max(np.abs(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["pi05", "pi0"])
def test_what_is_masked_moves_nothing_and_what_is_not_does(name):
    config = cases.CONFIGS[name]
    network, (observation, noise, time) = (
        cases.network_of(config, cases.random_params(config)),
        cases.random_inputs(config),
    )
    expected = run(network, observation, noise, time)
    left = observation.images["left_wrist"].copy()
    left[1] = 255 - left[1]  # sample 1 has no left wrist
    tokens = np.where(observation.prompt_mask, observation.prompt_tokens, 63)
    masked = dataclasses.replace(observation, images=observation.images | {"left_wrist": left}, prompt_tokens=tokens)
    for ours, before in zip(run(network, masked, noise, time), expected, strict=True):
        np.testing.assert_array_equal(ours, before)
    head = observation.images | {"head": 255 - observation.images["head"]}
    seen = dataclasses.replace(observation, images=head)
    assert (np.abs(run(network, seen, noise, time)[0] - expected[0]).max(axis=(1, 2)) > 1e-4).all()
    moved = run(network, dataclasses.replace(observation, state=observation.state + 1), noise, time)[0]
    assert np.array_equal(moved, expected[0]) == (name == "pi05")  # which reads the state in the prompt


def test_sampling_reads_the_prefix_once_and_every_tensor_is_read():
    config, reads = cases.CONFIG, []
    network = cases.network_of(config, cases.random_params(config))
    counting = Network(config, lambda key: (reads.append(key), network.read(key))[1], network.dtype)
    run_inputs = cases.random_inputs(config)
    counting.sample_actions(inputs_of(run_inputs[0]), torch.tensor(run_inputs[1]), num_flow_steps=3)
    tensors = cases.tensors_of(cases.random_params(config))
    last = f"language_model.layers.{config.vlm.depth - 1}."
    after_the_last_values = ("q_proj.weight", "o_proj.weight", "mlp.", "post_attention_layernorm.weight")
    unread = {
        key
        for key in tensors
        if key.endswith("language_model.norm.weight")
        or (last in key and any(part in key for part in after_the_last_values))
    }
    assert set(reads) == tensors.keys() - unread
    for key in set(reads):
        is_prefix = ".paligemma." in key
        assert reads.count(key) == (1 if is_prefix else 3), key


def test_a_point_cloud_where_none_is_expected_is_refused():
    for name, has in (("pi05", "has one"), ("points", "has none")):
        config = cases.CONFIGS[name]
        observation = cases.random_inputs(cases.CONFIGS["points" if name == "pi05" else "pi05"])[0]
        network = cases.network_of(config, cases.random_params(config))
        with pytest.raises(ValueError, match=f"the observation {has}, but the model has point_clouds"):
            network.read_prefix(inputs_of(observation))


def test_no_step_is_refused():
    config = cases.CONFIG
    observation, noise, _ = cases.random_inputs(config)
    network = cases.network_of(config, cases.random_params(config))
    with pytest.raises(ValueError, match="num_flow_steps must be at least 1; got 0"):
        network.sample_actions(inputs_of(observation), torch.tensor(noise), num_flow_steps=0)
