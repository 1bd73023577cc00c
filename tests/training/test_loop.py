import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.data.loader import Loader
from openpi_b1k.data.open import open_training_data
from openpi_b1k.models.pi0 import Model
from openpi_b1k.sharding import batch_sharding, make_mesh
from openpi_b1k.training import loop
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.start import Training, checkpoint_files, start
from openpi_b1k.training.stopping import InterruptedTraining
from openpi_b1k.training.window import NonFiniteLossError
from tests.training.killable import OneLayer

TIMES = (
    *("samples_per_s", "samples_per_s_per_device", "step_time_s", "data_wait", "unix_time"),
    *("host_memory_gb", "checkpoint_stall_s", "validation_s"),
)


def run(config):
    return loop.train(start(config, open_training_data(config)))


def restored(config):
    """Returns the state and position that a resumed run starts from."""
    training = start(dataclasses.replace(config, resume=True), open_training_data(config))
    return jax.device_get(training.take_state()), training


def directory_of(config):
    return pathlib.Path(config.checkpoint_dir) / "debug" / config.exp_name


def metrics_of(config):
    lines = [json.loads(line) for line in (directory_of(config) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def stop_at(patch, step):
    """Sends SIGTERM to this process while the batch of the given step is taken."""
    taken = []
    following = Loader.__next__

    def counted(loader):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return following(loader)

    patch.setattr(Loader, "__next__", counted)


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_resumed_equals_uninterrupted_bit_for_bit(whole, small_config, ema_decay, monkeypatch):
    if ema_decay is None:
        monkeypatch.setattr("openpi_b1k.training.start.Model", OneLayer)  # the real one takes long to compile
        whole = dataclasses.replace(small_config, exp_name="whole", ema_decay=None)
        run(whole)
    parts = dataclasses.replace(small_config, ema_decay=ema_decay)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(InterruptedTraining):
            run(parts)
    assert contents.completed_checkpoints(directory_of(parts)) == [3]
    assert run(dataclasses.replace(parts, resume=True)) == directory_of(parts) / "6"

    expected, training = restored(whole)
    found, resumed = restored(parts)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (expected.ema_params is None) == (ema_decay is None)
    assert training.completed_steps == resumed.completed_steps == 6
    assert training.samples_consumed == resumed.samples_consumed == 24
    assert metrics_of(parts) == metrics_of(whole)
    assert [line["step"] for line in metrics_of(whole)] == [3, 6]


def test_a_stopped_run_saves_says_how_to_go_on_and_what_it_is_made_of(small_config, monkeypatch, caplog):
    stop_at(monkeypatch, 2)
    with (
        caplog.at_level(logging.INFO, logger="openpi_b1k"),
        pytest.raises(InterruptedTraining, match=r"after 2 of 6 .* --exp-name run, without --overwrite$") as stop,
    ):
        run(small_config)
    assert stop.value.signal_number == signal.SIGTERM
    assert contents.completed_checkpoints(directory_of(small_config)) == [2]
    assert [line["step"] for line in metrics_of(small_config)] == [2]

    assert "batch_size: 4" in caplog.text
    assert "mesh: {'data': 1, 'fsdp': 4} over 4 x cpu" in caplog.text
    assert "\n  action_expert         18,720  trained" in caplog.text
    batch = caplog.text.split("first batch:")[1]
    for start_of_line in (
        "observation.images.head (4, 14, 14, 3) uint8 [",
        "observation.prompt_mask (4, 64) bool [False, True]",
        "actions (4, 8, 32) float32 [-",
    ):
        assert f"\n  {start_of_line}" in batch


def test_a_checkpoint_holds_the_average_to_act_with_and_goes_onto_another_mesh(whole):
    state, training = restored(dataclasses.replace(whole, fsdp=1))
    assert dict(training.mesh.shape) == {"data": 4, "fsdp": 1}
    checkpoint = directory_of(whole) / "6"
    shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state.params)
    acting, live = (
        load_params(checkpoint, training.model.abstract_params(), shardings, kind=kind) for kind in ("ema", "live")
    )
    jax.tree.map(np.testing.assert_array_equal, acting, state.ema_params)
    jax.tree.map(np.testing.assert_array_equal, live, state.params)
    differing = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), acting, live)
    assert all(jax.tree.leaves(differing["action_expert"]))
    info = contents.read_info(checkpoint)
    assert (info.completed_steps, info.samples_consumed, info.data_fingerprint, info.has_ema) == (6, 24, "random", True)
    assert contents.read_config(checkpoint) == whole
    assert contents.read_assets(checkpoint).tokenizer == training.data.tokenizer.model_bytes


def test_a_run_that_is_complete_has_nothing_to_resume_but_its_last_checkpoint(whole):
    before = metrics_of(whole)
    assert run(dataclasses.replace(whole, resume=True, exp_name=None)) == directory_of(whole) / "6"
    assert metrics_of(whole) == before


def test_weights_of_a_checkpoint_start_another_run(whole, small_config):
    training = start(
        dataclasses.replace(small_config, weights=str(directory_of(whole) / "6")), open_training_data(small_config)
    )
    state, (expected, _) = jax.device_get(training.take_state()), restored(whole)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.ema_params)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, expected.ema_params)
    assert (state.step, training.completed_steps, training.samples_consumed) == (0, 0, 0)


def test_resume_with_another_model_is_refused(whole):
    other = dataclasses.replace(whole.model, action_horizon=4)
    with pytest.raises(ValueError, match=r"--model\.action-horizon was 8 and is 4"):
        restored(dataclasses.replace(whole, model=other))


def test_another_batch_size_goes_on_with_the_next_whole_batch(small_config, monkeypatch):
    config = dataclasses.replace(small_config, batch_size=8)
    model, optimizer = Model(config.model), make_optimizer(config)
    training = Training(
        config, open_training_data(config), make_mesh(4), model, optimizer, None, directory_of(config), 3, 12
    )
    with (
        contextlib.closing(loop.open_loader(training)) as loader,
        contextlib.closing(Loader(training.data.mixture, config, batch_sharding(training.mesh), 2)) as expected,
    ):  # 12 samples consumed: the batch of 8 to 15 is half known, the next begins at 16
        jax.tree.map(np.testing.assert_array_equal, next(loader), next(expected))
    info = json.loads(checkpoint_files(training, 4)["checkpoint.json"])
    assert (info["completed_steps"], info["samples_consumed"]) == (4, 24)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_checkpoints(small_config, monkeypatch):
    following = Loader.__next__
    taken = []

    def spoiled(loader):
        batch = following(loader)
        taken.append(1)
        return dataclasses.replace(batch, actions=batch.actions * np.nan) if len(taken) == 5 else batch

    monkeypatch.setattr(Loader, "__next__", spoiled)
    config = dataclasses.replace(small_config, max_nonfinite_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"updates in a row were skipped, the last at step 5.* kept in .*run"):
        run(config)
    assert contents.completed_checkpoints(directory_of(config)) == [3]
    dumped = np.load(directory_of(config) / "nonfinite-5" / "batch.npz")
    assert np.isnan(dumped["actions"]).all()
    assert json.loads((directory_of(config) / "nonfinite-5" / "report.json").read_text())["step"] == 5


def test_one_spoiled_batch_is_skipped_and_counted(small_config, monkeypatch):
    monkeypatch.setattr("openpi_b1k.training.start.Model", OneLayer)
    following = Loader.__next__
    taken = []

    def spoiled(loader):
        batch = following(loader)
        taken.append(1)
        return dataclasses.replace(batch, actions=batch.actions * np.nan) if len(taken) == 2 else batch

    monkeypatch.setattr(Loader, "__next__", spoiled)
    assert run(small_config) == directory_of(small_config) / "6"
    lines = [json.loads(line) for line in (directory_of(small_config) / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_updates"] for line in lines] == [1, 0]
    assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_what_is_refused_is_refused_before_anything_is_deleted(small_config):
    old = directory_of(small_config) / "precious"
    old.mkdir(parents=True)
    config = dataclasses.replace(small_config, overwrite=True)
    data = open_training_data(config)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        start(dataclasses.replace(config, weights="/nowhere"), data)
    with pytest.raises(ValueError, match="--fsdp 3 does not divide the 4 devices"):
        start(dataclasses.replace(config, fsdp=3), data)
    with pytest.raises(ValueError, match="--batch-size 6 must be a multiple"):
        start(dataclasses.replace(config, batch_size=6), data)
    assert old.exists()
    start(config, data)
    assert not old.exists()
