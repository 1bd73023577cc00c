"""Batches on the mesh: what they hold, in which process they are made, and how a loader ends."""

import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.loader import Loader, process_rows
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.data.workers import WorkerError
from openpi_b1k.observation import Batch
from tests.dataset.dataset_cases import make_config
from tests.dataset.mixture_cases import numbers


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


@pytest.fixture
def random_config():
    return make_config("2025", None, source="random")


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def load(mixture, config, sharding, start_step=0, num_batches=3):
    with Loader(mixture, config, sharding, start_step) as loader:
        return [next(loader) for _ in range(num_batches)]


def states(batches):
    return [np.asarray(batch.observation.state).tolist() for batch in batches]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def read_lines(path):
    return path.read_text().splitlines()


def assert_ended():
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert not multiprocessing.active_children()


def test_a_batch_holds_the_samples_of_its_positions(random_config, sharding):
    config, mixture = random_config, open_training_data(random_config).mixture
    (batch,) = load(mixture, config, sharding, start_step=2, num_batches=1)
    assert isinstance(batch, Batch)
    reversed_bits = lambda n: f"{n % 64:06b}"[::-1]  # noqa: E731
    for row, n in enumerate(sorted(range(16, 24), key=reversed_bits)):
        sample = mixture.sample(n)
        for camera, image in sample["images"].items():
            np.testing.assert_array_equal(batch.observation.images[camera][row], image)
            assert bool(batch.observation.image_masks[camera][row])
        for name in ("state", "prompt_tokens", "prompt_mask"):
            np.testing.assert_array_equal(getattr(batch.observation, name)[row], sample[name])
        for name in ("actions", "action_mask", "source"):
            np.testing.assert_array_equal(getattr(batch, name)[row], sample[name])
    assert all(array.sharding.is_equivalent_to(sharding, array.ndim) for array in jax.tree.leaves(batch))
    assert batch.observation.images["head"].dtype == np.uint8
    assert (batch.actions.shape, batch.actions.dtype) == ((8, config.model.action_horizon, 32), np.float32)


def test_resuming_equals_going_on(random_config, sharding):
    mixture = open_training_data(random_config).mixture
    whole = load(mixture, random_config, sharding, 0, 5)
    assert_same(load(open_training_data(random_config).mixture, random_config, sharding, 3, 2), whole[3:])


def test_workers_make_the_same_batches_each_its_own_lanes_in_order(random_config, sharding, tmp_path):
    config = dataclasses.replace(with_data(random_config, num_workers=2), batch_size=64)
    expected = states(load(numbers(), with_data(config, num_workers=0), sharding, 0, 12))
    with Loader(numbers(notes=tmp_path), config, sharding, 3) as loader:
        batches = [next(loader)]
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM):  # as Ctrl-C and Slurm do; the process that trains decides
                os.kill(worker.pid, number)
        batches += [next(loader) for _ in range(8)]
    assert states(batches) == expected[3:]
    assert_ended()

    mixture, num_workers = numbers(), 2
    for worker in range(num_workers):  # each has a copy of its own of the data, with open decoders: order matters
        positions = [n for step in range(3, 40) for n in Rows(64, 0, 64, num_workers).share(step, worker)[1].tolist()]
        addresses = [mixture.address(n) for n in positions]
        due = [f"{address.index} {address.run[0]}" for address in addresses]
        (lines,) = [lines for lines in map(read_lines, tmp_path.iterdir()) if lines[0] == due[0]]
        assert len(lines) >= 9 * 32
        assert lines == due[: len(lines)]


def test_errors_in_a_worker_surface_and_end_the_loader(random_config, sharding):
    config = with_data(random_config, num_workers=2)
    bad = numbers().address(4 * 8 + 3).index
    with Loader(numbers(bad=(bad,)), config, sharding, 3) as loader:
        next(loader)
        with pytest.raises(BadSampleError, match=f"sample {bad} is bad"):
            next(loader)
        with pytest.raises(RuntimeError, match="this loader is closed"):
            next(loader)
    assert_ended()


def test_a_killed_worker_ends_the_run_and_says_why(random_config, sharding):
    config = with_data(random_config, num_workers=2)
    with Loader(numbers(), config, sharding) as loader:
        next(loader)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"was killed: .* exit code -9.*--data.num-workers.*--resume"):
            list(itertools.islice(loader, 1000))
    assert_ended()


def test_errors_in_the_thread_surface(random_config, sharding):
    bad = numbers().address(9).index
    with Loader(numbers(bad=(bad,)), random_config, sharding) as loader:
        next(loader)
        with pytest.raises(BadSampleError, match=f"sample {bad} is bad"):
            next(loader)
    assert_ended()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_samples_are_counted_and_logged(random_config, sharding, caplog, num_workers):
    config = with_data(random_config, num_workers=num_workers, on_bad_sample="skip")
    bad = tuple(numbers().address(n).index for n in (9, 9 + 64, 12))
    with caplog.at_level(logging.WARNING), Loader(numbers(bad=bad), config, sharding) as loader:
        skipped = []
        for _ in range(3):
            next(loader)
            skipped.append(loader.skipped_samples)
    assert skipped == [0, 2, 0]
    assert sorted(caplog.messages) == sorted(f"skipped: sample {i} is bad" for i in bad)


def test_many_skipped_samples_do_not_fill_the_log(random_config, sharding, caplog):
    config = dataclasses.replace(with_data(random_config, on_bad_sample="skip"), batch_size=64)
    bad = tuple(numbers().address(n).index for n in range(64))
    with caplog.at_level(logging.WARNING), Loader(numbers(bad=bad), config, sharding) as loader:
        next(loader)
        assert loader.skipped_samples == 64
    assert len(caplog.records) == 11
    assert caplog.records[-1].getMessage() == "skipped: 54 more for this batch"


def test_closing_ends_the_thread_and_waiting_is_measured(random_config, sharding):
    mixture = numbers()
    make = mixture.sample

    def slow(n):
        time.sleep(0.02)
        return make(n)

    mixture.sample = slow
    loader = Loader(mixture, random_config, sharding)
    batch = next(loader)
    assert loader.data_wait_s > 0.1  # eight samples
    while not loader._ready[0].done():  # noqa: SLF001
        time.sleep(0.01)
    next(loader)
    assert loader.data_wait_s < 0.1  # made meanwhile
    loader.close()
    loader.close()
    assert_ended()
    assert np.isfinite(batch.actions).all()


def test_a_batch_that_the_devices_cannot_share_is_refused(random_config, sharding):
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the 4 devices that share a batch"):
        Loader(numbers(), dataclasses.replace(random_config, batch_size=6), sharding)


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
