"""What happens when a checkpoint cannot be written: named errors, nothing half-written under its name, no hanging."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openpi_b1k.checkpoints import contents, manager
from openpi_b1k.checkpoints.failures import CheckpointError, CheckpointTimeoutError, check_space, failure, tree_bytes
from openpi_b1k.config.train import CheckpointConfig
from tests.checkpoints.test_manager import make_files, make_items, wait_for_error

REPOSITORY = pathlib.Path(__file__).parents[2]
NUM_SAVES = 200
LIMITED = """
import resource, signal, sys, pathlib
sys.path.insert(0, {repository!r})
from openpi_b1k.checkpoints import contents, manager
from openpi_b1k.config.train import CheckpointConfig
from tests.checkpoints.test_manager import make_files, make_items

checkpoints = manager.CheckpointManager(pathlib.Path({run!r}), CheckpointConfig(1, 1, None))
checkpoints.save(1, make_items(1), make_files(1))
checkpoints.close()
checkpoints = manager.CheckpointManager(pathlib.Path({run!r}), CheckpointConfig(1, 1, None))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk, instead of ending the process
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    checkpoints.save(2, make_items(2), make_files(2))
    checkpoints.close()
except manager.CheckpointError as error:
    print("caught", error)
"""


def test_a_full_disk_ends_the_save_with_a_named_error_and_keeps_what_was_saved(tmp_path):
    run = tmp_path / "run"
    script = LIMITED.format(repository=str(REPOSITORY), run=str(run))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)  # noqa: PLW1510
    assert "caught checkpoint 2 could not be written; those before are kept in" in done.stdout, done.stderr[-3000:]
    assert "the disk is full or a limit reached: it takes 0.00" in done.stdout
    assert "make room and continue with --resume" in done.stdout
    assert contents.completed_checkpoints(run) == [1]
    manager.CheckpointManager(run, CheckpointConfig()).close()
    assert [path.name for path in run.iterdir()] == ["1"]


def test_a_full_disk_is_told_by_number_or_text(tmp_path):
    for error in (
        OSError(28, "x"),
        ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: ENOSPC No space left on device]"),
    ):
        assert "the disk is full" in str(failure(error, tmp_path, 3, 10**9))
    assert "it takes 1.050 GB" in str(failure(OSError(28, "x"), tmp_path, 3, 10**9))
    assert "the disk is" not in str(failure(PermissionError(13, "denied"), tmp_path, 3, 10**9))


def test_a_disk_without_room_is_refused_before_the_run(tmp_path):
    num_bytes = tree_bytes({"a": jax.ShapeDtypeStruct((10, 10), jnp.bfloat16), "b": np.zeros(3, np.int64)})
    assert num_bytes == 10 * 10 * 2 + 3 * 8
    check_space(tmp_path / "not" / "there" / "yet", num_bytes)
    with pytest.raises(ValueError, match=r"one checkpoint takes 1050000\.00 GB, and the disk of .* --checkpoint-dir"):
        check_space(tmp_path, 10**15)


def join_background_threads():
    for thread in threading.enumerate():
        if thread.name.startswith(("async_save", "checkpoint")):
            thread.join(30)


@pytest.fixture
def release(monkeypatch):
    """Lets every save hang until the event is set; then it fails, as on a file system that comes back without files."""
    event = threading.Event()

    def hang(*_):
        event.wait(60)
        raise OSError("stale file handle")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", hang)
    return event


def test_a_save_that_hangs_is_given_up(tmp_path, release):
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig(timeout_s=1))
    checkpoints.save(1, make_items(1), make_files(1))
    with pytest.raises(CheckpointTimeoutError, match=r"checkpoint 1 was not written within --checkpoints.timeout-s 1;"):
        wait_for_error(checkpoints)
    started = time.monotonic()
    checkpoints.close()  # does not wait for it again
    assert time.monotonic() - started < 5
    release.set()
    join_background_threads()
    assert contents.completed_checkpoints(tmp_path) == []


def test_closing_a_run_whose_save_hangs_is_given_up_too(tmp_path, release):
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig(timeout_s=0.5))
    checkpoints.save(1, make_items(1), make_files(1))
    with pytest.raises(CheckpointTimeoutError, match="checkpoint 1 was not written within"):
        checkpoints.close()
    release.set()
    join_background_threads()


def test_a_checkpoint_that_fails_its_verification_gets_no_name_and_costs_no_other(tmp_path, monkeypatch):
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig(1, 1, None))
    checkpoints.save(1, make_items(1), make_files(1))
    checkpoints.save(2, make_items(2), make_files(2))  # waits for 1
    checkpoints.close()
    assert contents.completed_checkpoints(tmp_path) == [2]
    finalize = ocp.PyTreeCheckpointHandler.finalize

    def lose(handler, directory):
        finalize(handler, directory)
        if directory.name.startswith("params"):
            for path in directory.glob("_METADATA"):
                path.unlink()

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", lose)
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig(1, 1, None))
    checkpoints.save(3, make_items(3), make_files(3))
    with pytest.raises(CheckpointError, match=r"checkpoint 3 could not be written.*holds no tree of arrays"):
        checkpoints.close()
    assert contents.completed_checkpoints(tmp_path) == [2]


def resident_mb():
    """Returns the memory of this process in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_host_memory_stays_flat_over_two_hundred_saves(tmp_path):
    """A copy of this state is 2 MB: kept each time, it would be 300 MB after the first fifty saves."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    items = {"train_state": {"step": jnp.int32(0), "opt_state": jnp.ones((512, 1024), jnp.float32)}}
    items = jax.device_put(items, place)
    files = make_files(1)
    resident = []
    checkpoints = manager.CheckpointManager(tmp_path, CheckpointConfig(1, 1, None))
    for step in range(1, NUM_SAVES + 1):
        checkpoints.save(step, items, files)
        if step % 50 == 0:
            resident.append(resident_mb())
    checkpoints.close()
    assert contents.completed_checkpoints(tmp_path) == [NUM_SAVES]
    assert checkpoints.stall_s > 0
    assert resident[-1] - resident[0] < 60, resident
