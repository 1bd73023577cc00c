import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.checkpoints import openpi_rules
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.config.model import AdapterConfig, LoraConfig, ModelConfig
from openpi_b1k.models import lora
from openpi_b1k.models.pi0 import Model
from openpi_b1k.sharding import batch_sharding, make_mesh, param_shardings, replicated
from tests.models import concatenated
from tests.models.conftest import both_kinds

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def draws() -> tuple[jax.Array, jax.Array]:
    """Returns noise [b, f, ah, ad] and time [b, f] of three flow samples."""
    return jax.random.normal(KEY, (4, 3, 4, 6)), jax.random.uniform(KEY, (4, 3))


@pytest.fixture(scope="module")
def velocity(model, params):
    """Returns the velocity as a function of observation, noisy actions and time."""
    run = jax.jit(model.velocity)
    return lambda *args: np.asarray(run(params, *args))


@both_kinds
def test_cached_prefix_equals_one_concatenated_sequence(model, params, batch, draws):
    noisy, time = draws

    @jax.jit
    def ours(params, batch):
        network = model.network(params)
        prefix = network.embed_prefix(batch.observation)
        state = batch.observation.state
        suffix, condition = network.suffix.embed(state, noisy, time, dtype=jnp.dtype("float32"))
        output = network.expert_output(*network.read_prefix(batch.observation), state, noisy, time)
        return prefix.tokens, prefix.mask, suffix.tokens, condition, output

    tokens, mask, suffix, condition, output = jax.tree.map(np.asarray, ours(params, batch))
    theirs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), openpi_rules.to_openpi(params))
    for sample in range(3):
        expected = concatenated.expert_output(theirs, tokens, mask, suffix[:, sample], condition[:, sample], 4)
        np.testing.assert_allclose(output[:, sample], expected, atol=2e-4)


@both_kinds
def test_what_is_masked_moves_nothing(model, batch, draws, velocity):
    observation = batch.observation
    expected = velocity(observation, *draws)
    images = observation.images | {"right_wrist": observation.images["right_wrist"].at[1].set(255)}
    tokens = jnp.where(observation.prompt_mask, observation.prompt_tokens, 63)
    masked = dataclasses.replace(observation, images=images, prompt_tokens=tokens)
    np.testing.assert_array_equal(velocity(masked, *draws), expected)


@both_kinds
def test_what_is_not_masked_moves_something(model, batch, draws, velocity):
    observation = batch.observation
    expected = velocity(observation, *draws)
    for name, image in observation.images.items():
        changed = dataclasses.replace(observation, images=observation.images | {name: image.at[0].set(0)})
        difference = np.abs(velocity(changed, *draws) - expected).max(axis=(1, 2, 3))
        assert difference[0] > 1e-3
        assert (difference[1:] == 0).all()
    changed = dataclasses.replace(observation, prompt_tokens=(observation.prompt_tokens + 1) % 64)
    assert np.abs(velocity(changed, *draws) - expected).max() > 1e-3
    changed = dataclasses.replace(observation, state=observation.state.at[0].add(1))
    difference = np.abs(velocity(changed, *draws) - expected).max(axis=(1, 2, 3))
    assert (difference[0] > 1e-3) == (model.config.kind == "pi0")  # pi0.5 reads it in its prompt
    assert (difference[1:] == 0).all()


@pytest.mark.parametrize("model", ["pi0"], indirect=True, scope="session")
def test_the_token_of_the_state_sees_no_action(model, params, batch, draws):
    noisy, time = draws

    @jax.jit
    def output(noisy, time):
        network = model.network(params)
        return network.expert_output(*network.read_prefix(batch.observation), batch.observation.state, noisy, time)

    before, after = np.asarray(output(noisy, time)), np.asarray(output(noisy + 1, 1 - time))
    assert before.shape == (4, 3, 1 + 4, 16)
    np.testing.assert_array_equal(after[:, :, 0], before[:, :, 0])
    np.testing.assert_array_equal(before[:, 1, 0], before[:, 0, 0])  # so it is the same in every flow sample
    assert (np.abs(after - before)[:, :, 1:].max(axis=(1, 3)) > 1e-3).all()


@both_kinds
def test_adapters_of_the_expert_merge_into_its_kernels(model, params, batch, draws, velocity):
    config = dataclasses.replace(model.config, lora=LoraConfig(action_expert=AdapterConfig(rank=3, alpha=6.0)))
    abstract = flatten(Model(config).abstract_params())
    random = np.random.default_rng(3)
    adapters = {
        name: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
        for name, leaf in abstract.items()
        if "/lora_" in name
    }
    assert len(adapters) == 10
    adapted = unflatten(flatten(params) | adapters)
    expected = jax.jit(Model(config).velocity)(adapted, batch.observation, *draws)
    assert np.abs(velocity(batch.observation, *draws) - expected).max() > 1e-2
    merged = jax.jit(model.velocity)(lora.merge(adapted, config), batch.observation, *draws)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_masked_camera_is_as_if_there_were_none(batch, draws, model, params):
    observation = batch.observation
    absent = dataclasses.replace(observation, image_masks=observation.image_masks | {"right_wrist": jnp.zeros(4, bool)})
    two = ("head", "left_wrist")
    without = dataclasses.replace(
        observation,
        images={name: observation.images[name] for name in two},
        image_masks={name: observation.image_masks[name] for name in two},
    )
    run = jax.jit(model.velocity)
    np.testing.assert_allclose(run(params, absent, *draws), run(params, without, *draws), atol=1e-5)


@both_kinds
def test_flow_samples_are_independent_draws_averaged(model, params, batch, draws):
    noise, time = draws
    together, per_dim = jax.jit(model.loss_at)(params, batch, noise, time)
    one = jax.jit(model.loss_at)
    alone = [one(params, batch, noise[:, [i]], time[:, [i]]) for i in range(3)]
    np.testing.assert_allclose(together, np.mean([loss for loss, _ in alone]), rtol=1e-5)
    np.testing.assert_allclose(per_dim, np.mean([dims for _, dims in alone], axis=0), rtol=1e-4)


@both_kinds
def test_gradients_of_flow_samples_are_the_mean_over_separate_passes(model, params, batch, draws):
    noise, time = draws
    gradient = jax.jit(jax.grad(lambda params, noise, time: model.loss_at(params, batch, noise, time)[0]))
    together = flatten(gradient(params, noise, time))
    alone = [flatten(gradient(params, noise[:, [i]], time[:, [i]])) for i in range(3)]
    for group in ("vision", "vlm", "action_expert", "suffix"):
        names = [name for name in together if name.startswith(group)]
        mean = {name: np.mean([np.asarray(one[name], np.float64) for one in alone], axis=0) for name in names}
        difference = sum(((together[name] - mean[name]) ** 2).sum() for name in names) ** 0.5
        assert difference < 1e-5 * sum((mean[name] ** 2).sum() for name in names) ** 0.5, group


def test_draws_are_standard_normal_noise_and_times_each_their_own(model):
    noise, time = jax.jit(model.draw, static_argnums=(1, 2))(KEY, 500, 3)
    assert noise.shape == (500, 3, 4, 6)
    assert time.shape == (500, 3)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert len(np.unique(time)) == 1500
    split = jax.jit(Model(model.config, make_mesh(4)).draw, static_argnums=(1, 2))(KEY, 500, 3)
    np.testing.assert_array_equal(split[0], noise)
    assert split[0].sharding.shard_shape(noise.shape) == (125, 3, 4, 6)


def test_loss_draws_by_its_key(model, params, batch):
    loss = jax.jit(model.loss, static_argnames="flow_samples")
    first, per_dim = loss(params, batch, KEY, flow_samples=2)
    assert first.shape == ()
    assert per_dim.shape == (6,)
    assert loss(params, batch, KEY, flow_samples=2)[0] == first
    assert loss(params, batch, jax.random.key(8), flow_samples=2)[0] != first


@both_kinds
def test_sampling_is_euler_integration_of_the_velocity(model, params, batch, velocity):
    noise = jax.random.normal(KEY, (4, 4, 6))
    expected = np.asarray(noise)[:, None]
    for step in range(2):
        expected = expected - velocity(batch.observation, jnp.asarray(expected), jnp.full((4, 1), 1 - step / 2)) / 2
    sample = jax.jit(model.sample_actions, static_argnames="num_flow_steps")
    actions = sample(params, batch.observation, noise, num_flow_steps=2)
    np.testing.assert_allclose(actions, expected[:, 0], atol=1e-5)


@both_kinds
def test_fresh_parameters_are_openpis(model):
    fresh = flatten(jax.jit(model.init_params)(KEY))
    assert fresh.keys() == flatten(model.abstract_params()).keys()
    for name, leaf in fresh.items():
        if "modulation" in name or (name.endswith("bias") and "vision/layers/mlp" not in name):
            assert (leaf == 0).all(), name  # closed gates: at first the expert's layers pass their input on
    standard_deviations = {
        "vlm/layers/attn/q/kernel": 32**-0.5,
        "vlm/layers/attn/kv/kernel": 32**-0.5,
        "vlm/layers/attn/out/kernel": 64**-0.5,
        "vlm/layers/mlp/gate_up/kernel": 32**-0.5,
        "vlm/layers/mlp/down/kernel": 64**-0.5,
        "vlm/embedder/embedding": 0.01,
        "vision/embedding/kernel": 588**-0.5,
        "vision/layers/attn/q/kernel": 32**-0.5,
        "vision/layers/attn/out/kernel": 32**-0.5,
        "vision/layers/mlp/up/kernel": (2 / 96) ** 0.5,
    }
    for name, expected in standard_deviations.items():
        assert np.std(fresh[name]) == pytest.approx(expected, rel=0.08), name


@both_kinds
def test_activations_in_bfloat16_change_little(model, params, batch, draws, velocity):
    half = Model(dataclasses.replace(model.config, dtype="bfloat16"))
    result = jax.jit(half.velocity)(params, batch.observation, *draws)
    assert result.dtype == jnp.float32
    expected = velocity(batch.observation, *draws)
    assert np.abs(result - expected).max() < 0.05 * np.abs(expected).max()


@both_kinds
def test_four_devices_agree_with_one_and_hold_a_quarter_of_the_batch(model, params, batch, draws):
    mesh = make_mesh(4)
    split_model = Model(model.config, mesh)
    gradient = jax.value_and_grad(lambda model, p, b: model.loss_at(p, b, *draws)[0], argnums=1)
    alone = jax.jit(gradient, static_argnums=0)(model, params, batch)
    shardings = param_shardings(mesh, params, model.logical_axes())
    placed = jax.device_put(params, shardings), jax.device_put(batch, batch_sharding(mesh))
    step = jax.jit(gradient, static_argnums=0, out_shardings=(replicated(mesh), shardings))
    compiled = step.lower(split_model, *placed).compile()
    split = compiled(*placed)
    np.testing.assert_allclose(split[0], alone[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split[1], alone[1])
    # The largest activation of the whole batch, attention scores of the prefix [4 * 2, 17 * 2, 17], is on no device.
    assert "f32[2,34,17]" in compiled.as_text()
    assert "f32[8,34,17]" not in compiled.as_text()


def test_model_is_static_and_hashable(model):
    assert hash(Model(model.config)) == hash(model)
    assert Model(model.config) == model


@pytest.mark.parametrize(("kind", "num_parameters"), [("pi05", 3_353_433_872), ("pi0", 3_238_048_528)])
def test_full_size_names_shapes_and_count_are_openpis(data_dir, kind, num_parameters):
    full_size = json.loads((data_dir / "openpi_full_size_parameters.json").read_text())[kind]
    abstract = flatten(openpi_rules.to_openpi(Model(ModelConfig(kind=kind)).abstract_params()))
    ours = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in abstract.items()}
    assert ours == full_size["parameters"]
    found = sum(int(np.prod(leaf.shape)) for leaf in abstract.values())
    assert found == full_size["num_parameters"] == num_parameters
