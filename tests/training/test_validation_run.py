"""Metrics of held-out samples against the model called for one sample at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import debug
from openpi_b1k.config.train import BEST_METRICS
from openpi_b1k.data.held_out import open_held_out
from openpi_b1k.data.open import open_training_data
from openpi_b1k.evaluation.run_report_data import read_chunks
from openpi_b1k.models.pi0 import Model
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sharding import batch_sharding, make_mesh
from openpi_b1k.training.validation import FLOW_DRAWS, SEED, Validator, summed_over_processes
from tests import sample_cases

NUM_SAMPLES = 6
TRACED = []


class ScaledNoise(Model):
    """A model of one parameter: its loss is that times noise and time of each sample, its chunk that times noise."""

    def squared_errors(self, params, batch, noise, time):
        TRACED.append(time.shape)
        mask = jnp.asarray(batch.action_mask, jnp.float32)
        errors = params * jnp.sum(noise**2 * time[..., None, None], axis=1) * mask
        return errors.sum(axis=1), mask.sum(axis=1) * FLOW_DRAWS

    def sample_actions(self, params, observation, noise, *, num_flow_steps):
        return params * noise


@pytest.fixture(scope="module")
def case(tmp_path_factory, sample_root):
    config = sample_cases.tiny_config(tmp_path_factory.mktemp("validation"), sample_root("2025"), "2025")
    config = dataclasses.replace(config, validation_samples=NUM_SAMPLES, validation_interval=1)
    return config, open_training_data(config)


def validator_of(case, directory, model=ScaledNoise, num_devices=4, fsdp=1, **changes):
    config, data = case
    config, mesh = dataclasses.replace(config, **changes), make_mesh(fsdp, jax.devices()[:num_devices])
    return Validator(model(config.model, mesh), mesh, config, data, directory)


def scores_of(case, directory, params=1.0, **changes):
    return validator_of(case, directory, **changes).run(jax.tree.map(jnp.float32, params), 3)


def draws(number, config):
    """Returns noise [f, ah, ad] and times [f] of a sample's loss, and the noise [ah, ad] of its chunk."""
    flow_key, chunk_key = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number))
    noise, time = Model(config.model).draw(flow_key, 1, FLOW_DRAWS)
    size = (config.model.action_horizon, config.model.action_dim)
    return noise[0], time[0], jax.random.normal(chunk_key, size)


def test_scores_are_means_over_the_samples_one_by_one(case, tmp_path):
    config, data = case
    model = Model(config.model)
    params = model.init_params(jax.random.key(0))
    scores = scores_of(case, tmp_path, params, model=Model)

    held_out = open_held_out(data, config, batch_sharding(make_mesh(1, jax.devices()[:1])))
    loss, sample_actions = (
        jax.jit(model.squared_errors),
        jax.jit(model.sample_actions, static_argnames="num_flow_steps"),
    )
    batches = [jax.device_get(held_out.batch(number)[0]) for number in range(held_out.batching.num_batches)]
    whole = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
    errors, counts, by_field = [], [], {name: [] for name in ACTION.names}
    for k in range(NUM_SAMPLES):
        one = jax.tree.map(lambda array, k=k: array[k : k + 1], whole)
        noise, time, start = draws(k, config)
        squares, count = loss(params, one, noise[None], time[None])
        errors.append(np.asarray(squares).sum(dtype=np.float64))
        counts.append(np.asarray(count).sum(dtype=np.float64))
        chunk = np.asarray(sample_actions(params, one.observation, start[None], num_flow_steps=2))
        given = {"actions": chunk[0], "raw_state": held_out.raw_state[k]}
        predicted, true = held_out.outputs[0](given)["actions"], held_out.actions[k]
        for step in np.flatnonzero(held_out.step_mask[k]).tolist():
            for name in ACTION.names:
                asked, found = true[step, ACTION.slice(name)], predicted[step, ACTION.slice(name)]
                is_gripper = name.endswith("gripper")
                by_field[name].append(np.mean((asked > 0) == (found > 0) if is_gripper else np.abs(asked - found)))
    assert scores["validation/flow_loss"] == pytest.approx(sum(errors) / sum(counts), rel=1e-5)
    for name, values in by_field.items():
        key = f"validation/{name}_accuracy" if name.endswith("gripper") else f"validation/{name}"
        assert scores[key] == pytest.approx(np.mean(values), rel=1e-4), name
    assert set(BEST_METRICS) <= set(scores)
    steps = {key.rpartition("/")[2] for key in scores if key.startswith("validation/right_arm/")}
    assert steps <= {"step_1", "step_8", "step_25"}
    assert "step_1" in steps

    sharded = scores_of(case, tmp_path, params, model=Model, fsdp=2)
    assert sharded == pytest.approx(scores, rel=1e-4)


def test_noise_and_times_belong_to_the_sample(case, tmp_path):
    config, _ = case
    expected = scores_of(case, tmp_path)
    assert scores_of(case, tmp_path, num_devices=1, batch_size=5) == pytest.approx(expected, rel=1e-6)
    assert scores_of(case, tmp_path, batch_size=8, seed=5) == pytest.approx(expected, rel=1e-6)
    held_out = open_held_out(case[1], config, batch_sharding(make_mesh(1)))
    weighted, count = 0.0, 0
    for k in range(NUM_SAMPLES):
        noise, time, _ = draws(k, config)
        entries = np.asarray(noise**2 * time[:, None, None])[:, held_out.fields["action_mask",][k]]
        weighted, count = weighted + entries.sum(dtype=np.float64), count + entries.size
    assert expected["validation/flow_loss"] == pytest.approx(weighted / count, rel=1e-6)


def test_scores_follow_the_parameters(case, tmp_path):
    one, two = scores_of(case, tmp_path, 1.0), scores_of(case, tmp_path, 2.0)
    assert two["validation/flow_loss"] == pytest.approx(2 * one["validation/flow_loss"], rel=1e-6)
    assert two["validation/right_arm"] > one["validation/right_arm"]


def test_the_program_is_traced_once_and_every_look_has_its_file(case, tmp_path):
    validator = validator_of(case, tmp_path)
    TRACED.clear()
    first, second = (validator.run(jnp.float32(1), step) for step in (1, 2))
    assert first == second
    assert TRACED == [(4, FLOW_DRAWS)]
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["1.npz", "2.npz"]


def test_stored_chunks_are_what_the_report_reads(case, tmp_path):
    config, data = case
    scores = scores_of(case, tmp_path)
    held_out = open_held_out(data, config, batch_sharding(make_mesh(1)))
    chunks = read_chunks(tmp_path, 3)
    assert len(chunks) == NUM_SAMPLES
    for k, chunk in enumerate(chunks):
        np.testing.assert_array_equal(chunk.true, held_out.actions[k][held_out.step_mask[k]])
        np.testing.assert_array_equal(chunk.image, held_out.fields["images", "head"][k])
        assert chunk.prompt == held_out.prompts[k]
        assert chunk.place == f"episode {held_out.episodes[k]}, frame {held_out.frames[k]}"
    with np.load(tmp_path / "validation" / "3.npz") as stored:
        by_field = dict(zip(stored["fields"].tolist(), stored["step_errors"], strict=True))
        steps, counts = stored["step_errors"].shape[1], stored["step_counts"]
    assert steps == config.model.action_horizon
    assert counts.tolist() == held_out.step_mask.sum(axis=0).tolist()
    assert by_field["torso"][0] == scores["validation/torso/step_1"]
    everywhere = np.nansum(by_field["torso"] * counts) / counts.sum()
    assert everywhere == pytest.approx(scores["validation/torso"], rel=1e-9)


@pytest.mark.parametrize("is_random", [True, False])
def test_nothing_to_look_at_costs_nothing(case, tmp_path, is_random):
    config = dataclasses.replace(debug.CONFIG, name="debug") if is_random else case[0]
    data = open_training_data(config) if is_random else case[1]
    interval = 1 if is_random else 0
    validator = validator_of((config, data), tmp_path, validation_interval=interval)
    assert validator.is_idle
    assert validator.run(jnp.float32(1), 1) == {}
    assert not list(tmp_path.iterdir())
    assert not validator_of(case, tmp_path).is_idle


def test_sums_over_one_process_are_its_own():
    values = np.array([1 / 3, 1e-300])
    np.testing.assert_array_equal(summed_over_processes(values), values)
