"""Worker processes: how they end, and what is left of them."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.batch_memory import OwnBlocks
from openpi_b1k.data.batches import Shares
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.data.workers import WorkerError, Workers
from tests.dataset.mixture_cases import Numbers, numbers, source, to_model_sample

REPOSITORY = pathlib.Path(__file__).parents[2]
ROWS = Rows(16, 0, 16, 2)

LEFT_ALONE = """
import sys, time
from tests.dataset.test_workers import *

if __name__ == "__main__":
    workers = Workers(Shares(numbers(), ROWS, False), 0, ahead=2)
    workers.take(0, OwnBlocks())
    print(*(process.pid for process in workers._processes), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
    if sys.argv[1] == "close":
        workers.close()
"""


@dataclasses.dataclass
class Slow(Numbers):
    """Numbers that take long."""

    def get(self, i, run=None):
        time.sleep(60)
        return super().get(i, run)


def broken(sample):
    raise ZeroDivisionError("this pipeline is broken")


def grown(sample):
    number = sample["number"]
    return to_model_sample(sample) | {"state": np.zeros(1 + number // 500)}


def is_running(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


def opened(mixture, ahead=2):
    return Workers(Shares(mixture, ROWS, is_skipping=False), 0, ahead)


def test_steps_are_made_ahead_and_no_further_and_stay_what_they_were(tmp_path):
    workers = opened(numbers(notes=tmp_path), ahead=3)
    expected = [Shares(numbers(), ROWS, is_skipping=False).batch(step, OwnBlocks())[0] for step in range(8)]
    blocks = OwnBlocks()
    try:
        made = []
        for step in range(8):
            made.append(workers.take(step, blocks)[0])
            time.sleep(0.1)
            notes = [len(path.read_text().splitlines()) for path in tmp_path.iterdir()]
            assert sum(notes) <= 16 * (step + 1 + 4)
        np.testing.assert_equal(made, expected)
    finally:
        workers.close()


def test_another_error_ends_the_worker_and_shows_its_traceback(capfd):
    workers = opened(Mixture([source(Numbers(1000), pipeline=broken)]))
    try:
        with pytest.raises(WorkerError, match="failed: loader worker 0 has exit code 1; what it said is above"):
            workers.take(0, OwnBlocks())
    finally:
        workers.close()
    assert "this pipeline is broken" in capfd.readouterr().err


def test_workers_whose_samples_have_different_forms_are_refused():
    workers = opened(Mixture([source(Numbers(1000), pipeline=grown)]))
    try:
        with pytest.raises(ValueError, match=r"of a run must have the same fields, sizes and types; .* an earlier one"):
            workers.take(0, OwnBlocks())  # one worker has the upper half of the numbers
    finally:
        workers.close()


def test_errors_say_in_which_worker():
    workers = opened(numbers(bad=tuple(range(1000))))
    try:
        with pytest.raises(BadSampleError, match=r"sample \d+ is bad") as caught:
            workers.take(0, OwnBlocks())
    finally:
        workers.close()
    assert "In loader worker 0:\nTraceback" in caught.value.__notes__[0]


def test_closing_does_not_wait_for_a_slow_sample():
    workers = opened(Mixture([source(Slow(1000))]))
    workers._send_shares()  # noqa: SLF001
    start = time.perf_counter()
    workers.close()
    assert time.perf_counter() - start < 100  # a sample takes ten times as long
    with pytest.raises(WorkerError):
        workers.take(0, OwnBlocks())


@pytest.mark.parametrize("how", ["close", "leave", "wait"])
def test_nothing_is_left_and_nothing_is_said_whatever_way_the_run_ends(tmp_path, how):
    script = tmp_path / "run.py"
    script.write_text(LEFT_ALONE)
    before = set(os.listdir("/dev/shm"))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        pids = run.stdout.readline().split()
        if how == "wait":
            run.send_signal(signal.SIGKILL)
        said = run.communicate(timeout=30)[1]
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(is_running, pids))
    assert said == ""
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")]
