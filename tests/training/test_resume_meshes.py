"""A run goes on with other devices: the same state, the same samples in the same order."""

import contextlib
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from openpi_b1k import sharding
from openpi_b1k.checkpoints import contents
from openpi_b1k.config.optimization import NO_AUGMENTATION
from openpi_b1k.config.train import CheckpointConfig
from openpi_b1k.data.loader import Loader
from openpi_b1k.data.open import open_training_data
from openpi_b1k.training import loop, start
from openpi_b1k.training.stopping import InterruptedTraining, StopRequest
from tests.training.killable import OneLayer

MESHES = {1: 1, 4: 2, 2: 2}
"""Devices -> how many of them share one copy of the state."""


def directory_of(config):
    return pathlib.Path(config.checkpoint_dir) / "debug" / config.exp_name


@contextlib.contextmanager
def devices(patch, number, taken=None, last=None):
    """Lets a run see only so many devices, notes the batches that it takes, and stops it after the step `last`."""
    make_mesh, following = sharding.make_mesh, Loader.__next__

    def noted(loader):
        batch = following(loader)
        if taken is not None:
            taken.append(jax.device_get((batch.actions, batch.observation.state, batch.observation.prompt_tokens)))
        return batch

    def decide(config):
        config = dataclasses.replace(config, fsdp=MESHES[number], microbatches=1, ignore_memory_plan=True)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))

    with patch.context() as inner:
        inner.setattr(sharding, "make_mesh", lambda fsdp: make_mesh(fsdp, jax.devices()[:number]))
        inner.setattr(start, "decide", decide)
        inner.setattr(start, "Model", OneLayer)
        inner.setattr(Loader, "__next__", noted)
        inner.setattr(StopRequest, "is_agreed", lambda _, step: step == last)
        yield


@pytest.fixture
def config(small_config):
    """Returns a run that saves after every second of its six steps and keeps an average."""
    return dataclasses.replace(
        small_config,
        checkpoints=CheckpointConfig(save_every=2, keep_last=9, keep_every=None),
        validation_interval=0,
        augmentation=NO_AUGMENTATION,
        log_every=2,
    )


def train(config):
    with contextlib.suppress(InterruptedTraining):
        loop.train(start.start(config, open_training_data(config)))


def state_of(config):
    """Returns the state a resumed run begins with, and the devices that hold its kernel."""
    training = start.start(dataclasses.replace(config, resume=True), open_training_data(config))
    state = training.take_state()
    kernel = state.params["suffix"]["action_in_proj"]["kernel"]
    return jax.device_get(state), kernel.sharding, training


def test_one_device_then_four_then_two_take_the_same_samples_and_states(config, monkeypatch):
    whole = dataclasses.replace(config, exp_name="whole")
    expected, found = [], []
    with devices(monkeypatch, 1, expected):
        train(whole)
    assert len(expected) == 6

    for number, last in ((1, 2), (4, 4), (2, 6)):
        part = dataclasses.replace(config, resume=last > 2)
        with devices(monkeypatch, number, found, last):
            train(part)
        assert len(found) == last
        states = {}
        for other, fsdp in MESHES.items():  # what was saved on one mesh is the same on each
            with devices(monkeypatch, other):
                states[other], where, training = state_of(part)
            assert len(where.device_set) == other
            assert dict(training.mesh.shape) == {"data": other // fsdp, "fsdp": fsdp}
            assert (training.completed_steps, training.samples_consumed) == (last, last * 4)
            jax.tree.map(np.testing.assert_array_equal, states[other], states[1])
        info = contents.read_info(directory_of(part) / str(last))
        assert info.mesh == {"data": number // MESHES[number], "fsdp": MESHES[number]}

    jax.tree.map(np.testing.assert_array_equal, found, expected)  # the same samples in the same order
    with devices(monkeypatch, 1):
        uninterrupted, _, _ = state_of(whole)
    # Sums over a batch are added in another order on other meshes.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[1], uninterrupted)
