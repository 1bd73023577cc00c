"""Several processes on loopback; those tests that start the real script are slow."""

import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from openpi_b1k.config.train import DistributedConfig
from openpi_b1k.training import distributed
from openpi_b1k.training.distributed import Launch, launched
from openpi_b1k.training.watchdog import LOST_STATUS
from tests.training.processes import Processes

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
HEARTBEAT_S = 10
LONG = (
    f"--num-steps 100000 --log-every 1 --checkpoints.save-every 100000 --distributed.heartbeat-timeout-s {HEARTBEAT_S}"
)
VALIDATED = (
    "--data.source sample --data.sample-demos 8 --model.max-prompt-tokens 192 --num-steps 4 --log-every 2 "
    "--validation-interval 2 --validation-samples 6"
)
"""Six samples in two batches of four rows; the last two rows, on the second of two processes, do not count."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in a batch script, without srun
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, Launch("slurm", 3, 4, has_all_devices=False)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "5"}, Launch("slurm", 3, 4, has_all_devices=True)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, Launch("slurm", 3, 4, has_all_devices=False)),
        (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, Launch("slurm", 3, 4, has_all_devices=True)),
        (OMPI | URI, Launch("ompi", 1, 2, has_all_devices=True)),
        (OMPI | URI | SLURM | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Launch("ompi", 1, 2, has_all_devices=False)),
    ],
)
def test_how_this_process_was_started(environment, expected):
    assert launched(DistributedConfig(), environment) == expected


def test_flags_come_before_launchers():
    assert launched(DistributedConfig("h:1", 3, 2), SLURM) == Launch("flags", 2, 3, has_all_devices=True)
    assert launched(DistributedConfig("h:1", 1, 0), SLURM) is None


def test_an_open_mpi_that_hides_its_first_process_is_refused_with_the_command():
    with pytest.raises(ValueError, match=r"--distributed.coordinator HOST:PORT .*\$OMPI_COMM_WORLD_RANK"):
        launched(DistributedConfig(), OMPI)


def test_one_process_agrees_with_itself():
    assert distributed.agreed("x" * 2000) == "x" * 2000


def losses(run: pathlib.Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.slow
def test_two_processes_train_like_one_and_each_resumes_the_other(tmp_path):
    """Losses agree to a relative 1e-6: sums over devices of another process are made in another order."""
    steps = "--log-every 1 --checkpoints.save-every 3 --checkpoints.keep-last 9"
    found = {}
    for name, count in {"one": 1, "two": 2}.items():
        directory = tmp_path.with_name(f"{tmp_path.name}-{name}")
        with Processes(directory, count, f"{steps} --num-steps 3", devices=4 // count) as run:
            assert run.statuses() == [0] * count, run.log(0)
        with Processes(directory, 3 - count, f"{steps} --num-steps 6 --resume", devices=4 // (3 - count)) as run:
            assert run.statuses() == [0] * (3 - count), run.log(0)
            assert "resumed from" in run.log(0)
        found[name] = losses(run.run)
    assert list(found["one"]) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(found["two"].values()), list(found["one"].values()), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_score_held_out_episodes_as_one_does(tmp_path, sample_root):
    """To a relative 1e-5: the parameters are those of a run whose sums were made in another order."""
    flags, found = f"{VALIDATED} --data.root {sample_root('2025')}", {}
    for count in (1, 2):
        with Processes(tmp_path / f"of-{count}", count, flags, devices=4 // count) as run:
            assert run.statuses() == [0] * count, run.log(0)
        lines = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
        scores = {(line["step"], name): line[name] for line in lines for name in line if name.startswith("validation/")}
        for step in (2, 4):  # one process writes the errors of the samples of both
            with np.load(run.run / "validation" / f"{step}.npz") as stored:
                assert stored["step_counts"][0] == 6
                scores[step, "step_errors"] = stored["step_errors"]
        found[count] = scores
    assert {(2, "validation/flow_loss"), (4, "validation/flow_loss"), (4, "validation/right_arm")} <= found[1].keys()
    assert found[2].keys() == found[1].keys()
    for key, values in found[1].items():
        np.testing.assert_allclose(found[2][key], values, rtol=1e-5, err_msg=str(key))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("number", "limit_s"), [(signal.SIGKILL, 8), (signal.SIGSTOP, HEARTBEAT_S + 8)])
def test_when_a_process_dies_or_stands_still_the_other_ends_and_says_so(tmp_path, victim, number, limit_s):
    with Processes(tmp_path, 2, LONG) as run:
        run.await_lines(2)
        other, since = 1 - victim, time.monotonic()
        os.kill(run.started[victim].pid, number)
        assert run.started[other].wait(limit_s) == LOST_STATUS
        took = time.monotonic() - since
        log = run.log(other)
    reason = {
        signal.SIGKILL: "it has ended without a word, see its log",
        signal.SIGSTOP: "it has not been heard of for",
    }[number]
    assert f"error: process {victim} of 2 (" in log.splitlines()[-1]
    assert f"was lost: {reason}" in log.splitlines()[-1]
    assert "most recent call first" in log  # the stacks
    assert took > HEARTBEAT_S / 2 or number == signal.SIGKILL


@pytest.mark.slow
def test_a_process_with_other_flags_is_refused_and_ends_the_run(tmp_path):
    with Processes(tmp_path, 2, LONG, only_last="--seed 1") as run:
        assert run.statuses() == [LOST_STATUS, 2]
        logs = [run.log(i).splitlines()[-1] for i in range(2)]
    assert "error: process 1 of 2 (" in logs[0]
    assert "has ended with status 2, see its log" in logs[0]
    assert logs[1] == "error: process 1 was given other flags than process 0; compare their command lines"
    assert not (tmp_path / "debug").exists()
