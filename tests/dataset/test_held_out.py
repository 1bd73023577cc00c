"""Held-out samples against the data set's own samples of the same frames."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from configs import debug
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.data.b1k import B1kDataset, BadSampleError
from openpi_b1k.data.held_out import Batching, open_held_out
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.open import open_training_data
from openpi_b1k.sharding import batch_sharding, make_mesh
from tests import sample_cases

TASKS = ("press_red_button_with_left_gripper",)
NUM_SAMPLES = 6  # on four devices and with a batch of four, two batches of which the last is half full


def sharding(num_devices=4):
    return batch_sharding(make_mesh(1, jax.devices()[:num_devices]))


def two_sources(config):
    """Returns a config with a second source, whose state is ordered and whose actions are normalised differently."""
    fields = {field.name: getattr(config.data, field.name) for field in dataclasses.fields(SourceConfig)}
    transforms = dataclasses.replace(config.data.transforms, state_layout="grippers_last", delta_fields=())
    other = SourceConfig(**fields | {"name": "other", "weight": 0.5, "transforms": transforms, "tasks": TASKS})
    data = dataclasses.replace(config.data, extra_sources=(other,), norm_stats_of="own")
    return dataclasses.replace(config, data=data)


def unclipped(source):
    return dataclasses.replace(source, transforms=dataclasses.replace(source.transforms, clip_normalized=None))


@pytest.fixture(scope="module")
def config(tmp_path_factory, sample_root):
    config = sample_cases.tiny_config(tmp_path_factory.mktemp("held_out"), sample_root("2025"), "2025")
    return dataclasses.replace(config, validation_samples=NUM_SAMPLES, data=unclipped(config.data))


@pytest.fixture
def data(config):
    return open_training_data(config)


@pytest.fixture
def held_out(data, config):
    return open_held_out(data, config, sharding())


def test_samples_are_those_of_the_data_set_at_held_out_episodes(held_out, data, config, sample_root):
    found = data.sources[0].demonstrations
    counted = np.flatnonzero(held_out.is_counted)
    assert held_out.numbers[counted].tolist() == list(range(NUM_SAMPLES))
    assert set(held_out.episodes.tolist()) == set(found.validation.numbers.tolist())
    assert not set(held_out.episodes.tolist()) & set(found.index.numbers.tolist())

    # The whole data set as one source that holds out nothing: its samples, read in the usual way.
    whole = dataclasses.replace(config.data, validation_episodes=(), trim_idle=False)
    dataset = open_training_data(dataclasses.replace(config, data=whole)).dataset
    index = open_index(sample_root("2025"), config.data)
    for row in counted.tolist():
        episode = int(np.flatnonzero(index.numbers == held_out.episodes[row])[0])
        raw = dataset[int(index.starts[episode] + held_out.frames[row])]
        mask = held_out.step_mask[row]
        np.testing.assert_array_equal(held_out.actions[row][mask], raw["actions"][mask])
        assert held_out.prompts[row] == raw["prompt"]
        sample = data.pipeline(raw)
        for name in ("state", "prompt_tokens", "prompt_mask"):
            np.testing.assert_array_equal(held_out.fields[name,][row], sample[name])
        np.testing.assert_array_equal(held_out.fields["images", "head"][row], sample["images"]["head"])
        np.testing.assert_array_equal(held_out.fields["actions",][row][mask], sample["actions"][mask])
        assert held_out.fields["action_mask",][row].any(axis=-1).tolist() == mask.tolist()


def test_the_last_batch_is_filled_with_rows_that_do_not_count(held_out):
    assert held_out.batching.num_batches == 2
    assert held_out.is_counted.tolist() == [True] * 6 + [False] * 2
    assert not held_out.step_mask[6:].any()
    batch, numbers = held_out.batch(1)
    assert numbers.tolist() == [4, 5, 6, 7]
    assert batch.actions.sharding == sharding()
    np.testing.assert_array_equal(batch.actions, held_out.fields["actions",][4:])
    np.testing.assert_array_equal(batch.observation.images["head"], held_out.fields["images", "head"][4:])
    assert batch.source.tolist() == [0, 0, 0, 0]


def test_samples_depend_neither_on_seed_nor_on_devices_nor_on_the_batch(held_out, config):
    other = dataclasses.replace(config, seed=7, batch_size=5)
    again = open_held_out(open_training_data(other), other, sharding(1))
    assert [batching.batch_size for batching in (held_out.batching, again.batching)] == [4, 3]
    for path, array in held_out.fields.items():
        np.testing.assert_array_equal(array[:NUM_SAMPLES], again.fields[path][:NUM_SAMPLES], err_msg=str(path))
    np.testing.assert_array_equal(held_out.frames[:NUM_SAMPLES], again.frames[:NUM_SAMPLES])


def test_units_come_back_whatever_the_source_is_normalised_with(config):
    mixture = two_sources(config)
    mixture = dataclasses.replace(mixture, validation_samples=9)
    sources = tuple(unclipped(source) for source in mixture.data.extra_sources)
    mixture = dataclasses.replace(mixture, data=dataclasses.replace(mixture.data, extra_sources=sources))
    data = open_training_data(mixture)
    assert not np.array_equal(data.statistics[0].actions.q99, data.statistics[1].actions.q99)
    held_out = open_held_out(data, mixture, sharding())
    assert held_out.fields["source",][:9].tolist() == [0] * 6 + [1] * 3
    for number in range(held_out.batching.num_batches):
        rows = held_out.rows(number)
        back = held_out.in_units(number, held_out.fields["actions",][rows])
        np.testing.assert_allclose(back, held_out.actions[rows], atol=2e-5)


@pytest.mark.parametrize(
    ("num_samples", "max_rows", "num_devices", "expected"),
    [(256, 256, 4, (1, 256)), (257, 256, 4, (2, 132)), (3, 256, 4, (1, 4)), (9, 2, 4, (3, 4)), (10, 7, 4, (3, 4))],
)
def test_batches_are_few_of_equal_size_and_split_over_the_devices(num_samples, max_rows, num_devices, expected):
    batching = Batching.of(num_samples, max_rows, sharding(num_devices))
    assert (batching.num_batches, batching.batch_size) == expected
    assert batching.own_numbers().tolist() == list(range(expected[0] * expected[1]))


def test_microbatches_make_batches_smaller(data, config):
    config = dataclasses.replace(config, batch_size=8, microbatches=2)
    assert open_held_out(data, config, sharding()).batching.batch_size == 4
    config = dataclasses.replace(config, microbatches="auto")
    assert open_held_out(data, config, sharding()).batching.batch_size == 8


@pytest.fixture
def broken(held_out, monkeypatch):
    """Makes the frame of sample 1 unreadable; returns a function that does it to all."""
    frames = {int(held_out.frames[1])}
    get = B1kDataset.__getitem__

    def fail(dataset, i):
        sample = get(dataset, i)
        if not frames or sample["frame"] in frames:
            raise BadSampleError(f"sample {i} cannot be read")
        return sample

    monkeypatch.setattr(B1kDataset, "__getitem__", fail)
    return frames.clear


def test_samples_that_cannot_be_read_end_the_run_or_do_not_count(held_out, data, config, broken, caplog):
    with pytest.raises(BadSampleError, match="cannot be read"):
        open_held_out(data, config, sharding())
    skipping = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_sample="skip"))
    found = open_held_out(data, skipping, sharding())
    is_good = (held_out.frames != held_out.frames[1]) & held_out.is_counted
    assert 0 < is_good.sum() < NUM_SAMPLES
    assert found.is_counted.tolist() == is_good.tolist()
    assert not found.step_mask[~is_good].any()
    np.testing.assert_array_equal(found.fields["actions",][is_good], held_out.fields["actions",][is_good])
    assert "left out of the held-out samples: sample" in caplog.text
    broken()
    with pytest.raises(BadSampleError, match=r"none of this process's 8 held-out samples .*--validation-interval 0"):
        open_held_out(data, skipping, sharding())


def test_nothing_held_out_is_said_with_what_to_do(config, caplog):
    caplog.set_level(logging.INFO)
    random = dataclasses.replace(debug.CONFIG, name="debug")
    assert open_held_out(open_training_data(random), random, sharding()) is None
    assert "--data.validation-episodes is empty; choose more episodes, name some there" in caplog.text
    caplog.clear()
    all_trained = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_episodes=()))
    assert open_held_out(open_training_data(all_trained), all_trained, sharding()) is None
    assert "nothing is held out" in caplog.text
