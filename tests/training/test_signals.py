"""SIGTERM and Ctrl-C through the real script, in processes of their own: some minutes."""

import os
import re
import signal

import pytest

from tests.training.processes import Processes

pytestmark = pytest.mark.slow  # each starts the script, some twice

LONG = "--num-steps 100000 --log-every 1 --checkpoints.save-every 100000"


def saved_steps(run):
    return sorted(int(path.name) for path in run.run.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_process_group_saves_and_says_how_to_go_on(tmp_path, number, status):
    """As Slurm and terminals send it: the loader's workers get it too, and go on until the step is finished."""
    with Processes(tmp_path, 1, f"{LONG} --data.num-workers 2") as run:
        run.await_lines(2)
        os.killpg(run.started[0].pid, number)
        assert run.statuses() == [status], run.log(0)
        log = run.log(0)
    (step,) = saved_steps(run)
    assert re.search(rf"after {step} of 100000 steps.*--resume", log.splitlines()[-1]), log
    assert "Traceback" not in log
    with Processes(tmp_path, 1, f"--num-steps {step + 1} --log-every 1 --resume") as run:
        assert run.statuses() == [0], run.log(0)
        assert f"after {step} steps" in run.log(0)


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
def test_several_processes_stop_after_the_same_step_whoever_was_told(tmp_path, told):
    with Processes(tmp_path, 2, LONG) as run:
        run.await_lines(2)
        for i in told:
            os.kill(run.started[i].pid, signal.SIGTERM)
        assert run.statuses() == [143, 143], run.log(0) + run.log(1)
        (step,) = saved_steps(run)
        for i in range(2):
            assert f"after {step} of 100000 steps" in run.log(i).splitlines()[-1]
