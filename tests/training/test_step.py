import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k import sharding
from openpi_b1k.config.data import CAMERAS, SourceConfig
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import TrainState, abstract_state, full, random_state, shardings_of, step_key
from openpi_b1k.training.step import ema_decay, moving_average, train_step


def make_batch(config, seed):
    rng = np.random.default_rng(seed)
    b, model = config.batch_size, config.model
    image = (b, model.image_size, model.image_size, 3)
    shape = (b, model.action_horizon, model.action_dim)
    observation = Observation(
        images={name: rng.integers(0, 256, image, np.uint8) for name in CAMERAS},
        image_masks={name: np.ones(b, bool) for name in CAMERAS},
        state=rng.standard_normal((b, model.action_dim), np.float32),
        prompt_tokens=rng.integers(0, 512, (b, model.max_prompt_tokens), np.int32),
        prompt_mask=np.arange(model.max_prompt_tokens) < rng.integers(8, 64, (b, 1)),
    )
    mask = (np.arange(model.action_dim) < 23) & (
        np.arange(model.action_horizon)[:, None] < rng.integers(1, 9, (b, 1, 1))
    )
    source = rng.integers(0, len(config.data.sources), b).astype(np.int32)
    return Batch(observation, rng.standard_normal(shape, np.float32), mask, source)


def two_sources(config):
    """Returns a config with another source of random numbers."""
    extra = dataclasses.replace(config.data.sources[0], name="other")
    fields = {field.name for field in dataclasses.fields(SourceConfig)}
    extra = SourceConfig(**{name: getattr(extra, name) for name in fields})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, extra_sources=(extra,)))


class Run:
    """A model, its state and its compiled step."""

    def __init__(self, config, devices=None):
        self.config, self.mesh = config, sharding.make_mesh(config.fsdp, devices)
        self.model, self.optimizer = Model(config.model, self.mesh), make_optimizer(config)
        self.abstract = abstract_state(self.model, self.optimizer, config, self.mesh)
        self.state = random_state(self.model, self.optimizer, config, self.abstract)
        self.step = jax.jit(
            train_step(self.model, self.optimizer, config),
            donate_argnums=0,
            out_shardings=(shardings_of(self.abstract), sharding.replicated(self.mesh)),
        )

    def make_step(self, batch):
        """Makes a step and returns its metrics."""
        before = self.state
        batch = jax.device_put(batch, sharding.batch_sharding(self.mesh))
        self.state, metrics = self.step(before, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        return jax.device_get(metrics)


def opened(state):
    """Returns the state with numbers in all that is zero: through the expert's closed gates no gradient comes."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        value = rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape).astype(leaf.dtype)
        return leaf if np.asarray(leaf).any() else jax.device_put(value, leaf.sharding)

    return dataclasses.replace(state, params=jax.tree.map(fill, state.params), frozen=jax.tree.map(fill, state.frozen))


def host(tree):
    """Returns copies on the host: the next step uses the state's memory up."""
    return jax.tree.map(np.array, tree)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, host(tree), host(other))


def test_four_devices_that_share_the_state_train_as_one_does(small_config):
    shared, alone = Run(small_config), Run(dataclasses.replace(small_config, fsdp=1), jax.devices()[:1])
    for seed in range(3):
        batch = make_batch(small_config, seed)
        ours, expected = shared.make_step(batch), alone.make_step(batch)
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], expected["grad_norm"], rtol=1e-4)
    for name in ("mu", "nu"):
        moments = jax.tree.leaves(getattr(shared.state.opt_state[1], name))
        for leaf, where in zip(moments, jax.tree.leaves(shared.state.params), strict=True):
            assert leaf.sharding == where.sharding
    assert int(shared.state.step) == int(alone.state.step) == 3


def test_metrics_are_those_of_the_update(small_config):
    config = two_sources(dataclasses.replace(small_config, freeze=("vision",), flow_samples=2))
    run, batch = Run(config), jax.tree.map(jnp.asarray, make_batch(config, 0))
    run.state = opened(run.state)
    before = host(run.state)
    noise, time = run.model.draw(step_key(config.seed, 0), config.batch_size, 2)
    errors, counts = jax.jit(run.model.squared_errors)(full(run.state), batch, noise, time)
    errors, counts = np.asarray(errors, np.float64), np.asarray(counts, np.float64)
    gradients = jax.jit(jax.grad(lambda params: run.model.loss_at(params, batch, noise, time)[0]))(full(run.state))
    metrics = run.make_step(batch)
    after = host(run.state)

    np.testing.assert_allclose(metrics["loss"], errors.sum() / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_per_dim"][:23], errors.sum(0)[:23] / counts.sum(0)[:23], rtol=1e-5)
    assert not metrics["loss_per_dim"][23:].any()
    for source in range(2):
        of_source = batch.source == source
        assert metrics["source_count"][source] == counts[of_source].sum()
        np.testing.assert_allclose(
            metrics["source_loss"][source], errors[of_source].sum() / max(counts[of_source].sum(), 1), rtol=1e-5
        )
    parts = {"language": ["vlm"], "action_expert": ["action_expert"], "projections": ["suffix"]}
    changes = jax.tree.map(lambda new, old: new - old, after.params, before.params)
    for group, names in parts.items():
        for metric, tree in (("grad_norm", gradients), ("update_norm", changes)):
            expected = norm([tree[name] for name in names])
            np.testing.assert_allclose(metrics[f"{metric}/{group}"], expected, rtol=1e-3, err_msg=metric + group)
    assert {name for name in metrics if "/" in name} == {
        f"{m}/{g}" for m in ("grad_norm", "update_norm") for g in parts
    }
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sqrt(sum(metrics[f"grad_norm/{group}"] ** 2 for group in parts)), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["param_norm"], norm(after.params), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 5e-4, rtol=1e-6)  # one update of warm-up
    assert metrics["is_finite"]
    decay = 2 / 11
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, decay * old + (1 - decay) * new, atol=1e-6),
        *(after.ema_params, before.ema_params, after.params),
    )


def norm(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def test_what_is_frozen_stays_to_the_bit_and_all_else_moves(small_config):
    model = dataclasses.replace(small_config.model, dtype="bfloat16")
    config = dataclasses.replace(small_config, model=model, train_expert_only=True, num_steps=10)
    run = Run(config)
    before = host(run.state)
    for seed in range(10):
        assert run.make_step(make_batch(config, seed))["is_finite"]
    assert_equal(run.state.frozen, before.frozen)
    assert set(before.frozen) == {"vision", "vlm"}
    for tree, old in ((run.state.params, before.params), (run.state.ema_params, before.ema_params)):
        assert set(tree) == {"action_expert", "suffix"}
        moved = jax.tree.map(lambda new, old: bool((new != old).any()), host(tree), old)
        assert jax.tree.all(moved)
    assert int(run.state.step) == 10


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, 1e30])
def test_an_update_that_is_not_finite_is_skipped_to_the_bit(small_config, spoiled):
    run = Run(small_config)
    run.make_step(make_batch(small_config, 0))
    before = host(run.state)
    bad = make_batch(small_config, 1)
    bad.actions[2, 0, 3] = spoiled
    metrics = run.make_step(bad)
    assert not metrics["is_finite"]
    assert all(metrics[name] == 0 for name in metrics if name.startswith("update_norm/"))
    assert_equal(dataclasses.replace(run.state, step=0), dataclasses.replace(before, step=0))
    assert int(run.state.step) == 2
    metrics = run.make_step(make_batch(small_config, 2))
    assert metrics["is_finite"]
    assert metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), host(run.state.params), before.params)
    assert any(jax.tree.leaves(moved))


class Line:
    """A model whose loss is sqrt(p * action): at p = 0 a number, and its gradient none."""

    mesh = None

    def draw(self, key, b, flow_samples):
        return jnp.zeros((b, flow_samples, 1, 1)), jnp.zeros((b, flow_samples))

    def squared_errors(self, params, batch, noise, time):
        errors = jnp.sqrt(params["suffix"]["kernel"] * batch.actions[:, 0])
        return errors, jnp.ones_like(errors)


def test_a_gradient_that_is_not_finite_is_enough_and_the_rate_goes_on(small_config):
    schedule = ScheduleConfig(0.0, peak_lr=0.1, final_lr=0.01)
    config = dataclasses.replace(small_config, schedule=schedule, ema_decay=None, num_steps=5)
    optimizer = make_optimizer(config)
    params = {"suffix": {"kernel": jnp.zeros(1)}}
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), None)
    batch = Batch(None, jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1), bool))
    step = jax.jit(train_step(Line(), optimizer, config))
    after, metrics = step(state, batch)
    assert metrics["loss"] == 0
    assert not metrics["is_finite"]
    assert not np.isfinite(metrics["grad_norm/projections"])
    assert_equal(dataclasses.replace(after, step=0), dataclasses.replace(state, step=0))
    _, metrics = step(dataclasses.replace(after, params={"suffix": {"kernel": jnp.ones(1)}}), batch)
    np.testing.assert_allclose(metrics["learning_rate"], 0.01 + 0.09 * (1 + np.cos(np.pi / 4)) / 2, rtol=1e-6)
    # Adam's first update is its learning rate long, however many were skipped before.
    np.testing.assert_allclose(metrics["update_norm/projections"], metrics["learning_rate"], rtol=1e-5)
    assert metrics["is_finite"]


def num_products(function, *args):
    """Returns how many matrix products a function lowers to; with one layer nothing is in a loop."""
    return jax.jit(function).lower(*args).as_text().count("stablehlo.dot_general")


def test_no_backward_pass_goes_through_frozen_parts(small_config):
    config = dataclasses.replace(small_config, fsdp=1, ema_decay=None)
    batch = jax.tree.map(jnp.asarray, make_batch(config, 0))
    mesh, optimizer, counts = sharding.make_mesh(1, jax.devices()[:1]), make_optimizer(config), {}
    model = Model(config.model, mesh)
    for roles in ((), ("vision",), ("vision", "language")):
        changed = dataclasses.replace(config, freeze=roles)
        state = abstract_state(model, optimizer, changed, mesh)
        counts[roles] = num_products(train_step(model, optimizer, changed), state, batch)

    def prefix(params):
        return model.network(params).read_prefix(batch.observation)

    def loss(trained, frozen, keys_values, mask, noise, time):
        network = model.network(trained | frozen)
        output = network.expert_output(keys_values, mask, batch.observation.state, noise, time)
        return jnp.sum(network.suffix.velocity(output) ** 2)

    draws = jax.eval_shape(lambda: model.draw(jax.random.key(0), config.batch_size, 1))
    read = jax.eval_shape(prefix, full(state))
    forward = num_products(prefix, full(state))
    backward = num_products(jax.grad(loss), state.params, state.frozen, *read, *draws)
    assert counts["vision", "language"] == forward + backward
    assert counts["vision",] > forward + backward
    assert counts[()] > counts["vision",]


@pytest.mark.parametrize(("n", "decay"), [(1, 2 / 11), (10, 11 / 20), (100, 101 / 110), (10_000, 0.99)])
def test_the_average_forgets_sooner_at_the_start(n, decay):
    np.testing.assert_allclose(ema_decay(0.99, jnp.int32(n)), decay, rtol=1e-6)


def test_the_average_is_float32_whatever_the_parameters():
    average = moving_average({"a": jnp.full(2, 2.0)}, {"a": jnp.full(2, 1.0, jnp.bfloat16)}, jnp.float32(0.75))
    assert average["a"].dtype == jnp.float32
    np.testing.assert_array_equal(average["a"], [1.75, 1.75])
