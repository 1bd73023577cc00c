import dataclasses
import json
import logging

import pytest

from configs import debug
from openpi_b1k.checkpoints import contents
from openpi_b1k.config.train import DistributedConfig
from openpi_b1k.training import runs

CONFIG = dataclasses.replace(debug.CONFIG, name="debug")


@pytest.fixture
def config(tmp_path):
    return dataclasses.replace(CONFIG, checkpoint_dir=str(tmp_path))


def make_checkpoint(tmp_path, name, steps, saved_at):
    directory = tmp_path / "debug" / name / str(steps)
    directory.mkdir(parents=True)
    info = contents.CheckpointInfo(steps, steps * 8, "f", False, "1", saved_at)
    (directory / "checkpoint.json").write_text(json.dumps(dataclasses.asdict(info)))
    return directory


def test_a_run_without_a_name_is_called_by_its_start_time(config, tmp_path):
    run = runs.choose(config)
    assert run.last_checkpoint is None
    assert run.directory.parent == tmp_path / "debug"
    assert len(run.directory.name) == len("2026-01-31_23-59-59")
    assert not run.directory.exists()


def test_an_existing_run_is_refused_naming_both_ways_out(config, tmp_path):
    (tmp_path / "debug" / "radio").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"radio exists; continue it with --resume, replace it with --overwrite"):
        runs.choose(dataclasses.replace(config, exp_name="radio"))


def test_overwrite_deletes_only_when_the_run_is_created(config, tmp_path):
    kept = make_checkpoint(tmp_path, "other", 10, 1.0)
    deleted = make_checkpoint(tmp_path, "radio", 10, 1.0)
    run = runs.choose(dataclasses.replace(config, exp_name="radio", overwrite=True))
    assert deleted.exists()
    runs.create(run)
    assert not deleted.exists()
    assert run.directory.is_dir()
    assert kept.exists()


def test_nothing_is_deleted_that_was_not_to_be(config, tmp_path):
    run = runs.choose(dataclasses.replace(config, exp_name="radio"))
    kept = make_checkpoint(tmp_path, "radio", 10, 1.0)  # by another process, meanwhile
    with pytest.raises(FileExistsError, match=r"another run has just made .*radio; .* with --exp-name"):
        runs.create(run)
    assert kept.exists()


@pytest.mark.parametrize("name", ["..", "a/b", "", "-x", ".hidden"])
def test_a_name_that_is_no_directory_name_is_refused(config, name):
    with pytest.raises(ValueError, match="--exp-name must match"):
        runs.choose(dataclasses.replace(config, exp_name=name, overwrite=True))


def test_resume_without_a_name_takes_the_run_that_saved_last(config, tmp_path):
    make_checkpoint(tmp_path, "b", 30, 100.0)
    make_checkpoint(tmp_path, "a", 9, 300.0)
    last = make_checkpoint(tmp_path, "a", 10, 400.0)
    make_checkpoint(tmp_path, "c", 20, 200.0)
    (tmp_path / "debug" / "d" / "50.orbax-checkpoint-tmp").mkdir(parents=True)
    run = runs.choose(dataclasses.replace(config, resume=True))
    assert run == runs.Run(tmp_path / "debug" / "a", last)


def test_nothing_to_resume_is_refused(config, tmp_path):
    resume = dataclasses.replace(config, resume=True)
    with pytest.raises(FileNotFoundError, match=r"no run in .*debug has a checkpoint to resume from"):
        runs.choose(resume)
    make_checkpoint(tmp_path, "radio", 10, 1.0)
    (tmp_path / "debug" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no run .*radi0 to resume; runs there: empty, radio"):
        runs.choose(dataclasses.replace(resume, exp_name="radi0"))
    with pytest.raises(FileNotFoundError, match=r"empty has no checkpoint to resume from; .* --overwrite"):
        runs.choose(dataclasses.replace(resume, exp_name="empty"))


def test_another_model_cannot_be_resumed(config, tmp_path):
    model = dataclasses.replace(config.model, action_horizon=4, num_flow_steps=3)
    with pytest.raises(ValueError, match="another model") as error:
        runs.check_resumable(dataclasses.replace(config, model=model), config, tmp_path / "10")
    assert "--model.action-horizon was 8 and is 4" in str(error.value)
    assert "--model.num-flow-steps was 10 and is 3" in str(error.value)
    with pytest.raises(ValueError, match=r"--ema-decay was None and is 0\.9"):
        runs.check_resumable(dataclasses.replace(config, ema_decay=0.9), config, tmp_path / "10")


def test_other_statistics_are_refused(tmp_path):
    runs.check_norm_stats("{}", "{}", tmp_path / "10")
    with pytest.raises(ValueError, match=r"norm stats differ from those .*10 was trained with.* --norm-stats .*10"):
        runs.check_norm_stats("{}", "[]", tmp_path / "10")


def test_other_changes_are_logged(config, tmp_path, caplog):
    model = dataclasses.replace(config.model, remat="full")
    changed = dataclasses.replace(
        config, model=model, num_steps=99, exp_name="x", resume=True, checkpoint_dir="elsewhere"
    )
    with caplog.at_level(logging.WARNING):
        runs.check_resumable(changed, config, tmp_path / "10")
        before, now = contents.SourceInfo("demos", "aaa", "old"), contents.SourceInfo("demos", "bbb", "new")
        info = contents.CheckpointInfo(1, 8, "aaa", False, "1", sources=(before,))
        runs.check_data(info, "aaa", (before,))
        runs.check_data(info, "bbb", (now,))
    messages = sorted(record.getMessage() for record in caplog.records)
    assert messages == [
        "resumed on other data; the run goes on at its position in the new order. Before: demos: fingerprint aaa, "
        "revision old. Now: demos: fingerprint bbb, revision new",
        "resumed with a change: --model.remat was 'none' and is 'full'",
        "resumed with a change: --num-steps was 20 and is 99",
    ]


def test_a_directory_that_another_machine_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.jax, "process_count", lambda: 2)
    monkeypatch.setattr(runs.jax, "process_index", lambda: 1)
    monkeypatch.setattr(runs.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(runs, "SHARED_S", 0.2)
    run = runs.Run(tmp_path / "debug" / "radio", None)
    with pytest.raises(FileNotFoundError, match=r"process 1 \(.*\) does not see it: --checkpoint-dir must be .* share"):
        runs.create(run)
    run.directory.mkdir(parents=True)
    runs.create(run)


def test_how_a_run_was_started_is_no_change_of_it(caplog):
    started = dataclasses.replace(CONFIG, distributed=DistributedConfig("host:1", 2, 1), hang_timeout_s=5.0)
    runs.check_resumable(started, CONFIG, "checkpoint")
    assert caplog.records == []
