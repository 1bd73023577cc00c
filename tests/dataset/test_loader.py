"""Batches: the same for any number of workers, any start step and any split over processes."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from openpi_b1k.data.batches import BatchSource
from openpi_b1k.data.loader import Loader, process_rows
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.order import sample_index
from openpi_b1k.observation import Batch
from tests.dataset.dataset_cases import NAMES, make_config


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@dataclasses.dataclass(frozen=True)
class FailingAt:
    """A data set with one bad sample."""

    dataset: object
    bad: int

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        if i == self.bad:
            raise ValueError(f"sample {i} is bad")
        return self.dataset[i]


def load(data, config, sharding, start_step=0, num_batches=3):
    with Loader(data.dataset, data.pipeline, config, sharding, start_step) as loader:
        return [next(loader) for _ in range(num_batches)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_a_batch_holds_the_samples_of_its_positions(config, sharding):
    data = open_training_data(config)
    (batch,) = load(data, config, sharding, start_step=2, num_batches=1)
    assert isinstance(batch, Batch)
    indices = sample_index(config.seed, np.arange(16, 24), len(data.dataset))
    for row, i in enumerate(indices.tolist()):
        sample = data.pipeline(data.dataset[i])
        for camera, image in sample["images"].items():
            np.testing.assert_array_equal(batch.observation.images[camera][row], image)
            assert bool(batch.observation.image_masks[camera][row])
        for name in ("state", "prompt_tokens", "prompt_mask"):
            np.testing.assert_array_equal(getattr(batch.observation, name)[row], sample[name])
        for name in ("actions", "action_mask"):
            np.testing.assert_array_equal(getattr(batch, name)[row], sample[name])
    assert all(array.sharding.is_equivalent_to(sharding, array.ndim) for array in jax.tree.leaves(batch))
    assert batch.observation.images["head"].dtype == np.uint8
    assert (batch.actions.shape, batch.actions.dtype) == ((8, config.model.action_horizon, 32), np.float32)


def test_resuming_equals_going_on(config, sharding):
    data = open_training_data(config)
    assert_same(load(data, config, sharding, 3, 2), load(data, config, sharding, 0, 5)[3:])


class _Numbers:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        number = np.array(i)
        images = {"head": number}
        names = ("state", "prompt_tokens", "prompt_mask", "actions", "action_mask")
        return {"images": images, "image_masks": images} | dict.fromkeys(names, number)


def test_every_epoch_holds_every_sample_once():
    source = BatchSource(_Numbers(100), lambda sample: sample, 0, 8, 0, 8)
    seen = np.concatenate([source[step]["state"] for step in range(25)])
    np.testing.assert_array_equal(np.sort(seen[:100]), np.arange(100))
    np.testing.assert_array_equal(np.sort(seen[100:]), np.arange(100))


def test_shares_of_processes_make_up_the_batch():
    def source(first, stop):
        return BatchSource(_Numbers(100), lambda sample: sample, 0, 8, first, stop)

    whole = source(0, 8)[5]["images"]["head"]
    np.testing.assert_array_equal(
        np.concatenate([source(first, first + 2)[5]["images"]["head"] for first in (0, 2, 4, 6)]), whole
    )


def test_workers_make_the_same_batches_and_report_errors(data_dir, sharding):
    config = make_config("2026", data_dir / NAMES["2026"])
    with_workers = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=2))
    data = open_training_data(config)
    bad = int(sample_index(0, 4 * 8 + 3, len(data.dataset)))
    first_seen = [int(i) for i in sample_index(0, np.arange(32), len(data.dataset))]
    assert bad not in first_seen
    expected = load(data, config, sharding, 0, 4)
    failing = FailingAt(data.dataset, bad)
    with Loader(failing, data.pipeline, with_workers, sharding, 1) as loader:
        batches = [next(loader)]
        workers = multiprocessing.active_children()
        assert len(workers) >= 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)  # as Ctrl-C does; the process that trains decides what it means
        assert_same([*batches, next(loader), next(loader)], expected[1:])
        with pytest.raises(ValueError, match=f"sample {bad} is bad"):
            next(loader)
        with pytest.raises(RuntimeError, match="this loader is closed"):
            next(loader)


def test_errors_in_the_thread_surface(sharding):
    config = make_config("2025", None, source="random")
    data = open_training_data(config)
    bad = int(sample_index(0, 9, len(data.dataset)))
    with Loader(FailingAt(data.dataset, bad), data.pipeline, config, sharding) as loader:
        next(loader)
        with pytest.raises(ValueError, match=f"sample {bad} is bad"):
            next(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_closing_ends_the_thread_and_waiting_is_measured(sharding):
    config = make_config("2025", None, source="random")
    data = open_training_data(config)

    def slow(sample):
        time.sleep(0.02)
        return data.pipeline(sample)

    loader = Loader(data.dataset, slow, config, sharding)
    batch = next(loader)
    assert loader.data_wait_s > 0.1  # eight samples
    while not loader._ready[0].done():  # noqa: SLF001
        time.sleep(0.01)
    next(loader)
    assert loader.data_wait_s < 0.1  # made meanwhile
    loader.close()
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert np.isfinite(batch.actions).all()


def test_refusals(sharding):
    config = make_config("2025", None, source="random")
    data = open_training_data(config)
    with pytest.raises(ValueError, match=r"the data set has no samples; see --data.tasks"):
        Loader([], data.pipeline, config, sharding)
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the 4 devices that share a batch"):
        Loader(data.dataset, data.pipeline, dataclasses.replace(config, batch_size=6), sharding)


class _TwoProcesses:
    """A sharding over four devices of which this process has some."""

    num_devices = 4

    def __init__(self, own):
        self.own = own

    def shard_shape(self, shape):
        return (shape[0] // 4,)

    def addressable_devices_indices_map(self, shape):
        part = shape[0] // 4
        return {i: (slice(i * part, (i + 1) * part),) for i in self.own}


def test_a_process_makes_the_rows_its_devices_hold(sharding):
    assert process_rows(sharding, 8) == (0, 8)
    assert process_rows(_TwoProcesses((2, 3)), 8) == (4, 8)
    assert process_rows(_TwoProcesses((0, 1)), 8) == (0, 4)
    with pytest.raises(ValueError, match="must hold neighbouring rows of the batch"):
        process_rows(_TwoProcesses((0, 2)), 8)
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    assert process_rows(replicated, 7) == (0, 7)
