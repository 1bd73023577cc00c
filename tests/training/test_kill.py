"""A run that is killed again and again, with no time to clean up, ends where one does that never was."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from openpi_b1k.checkpoints import contents, orbax_tree, retention, verification
from tests.training.killable import NUM_STEPS

NUM_KILLS, NUM_EARLY = 20, 4
REPOSITORY = pathlib.Path(__file__).parents[2]


class Lives:
    """Processes that train the same run, one after the other."""

    def __init__(self, directory):
        self.directory = directory
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.killable", str(directory)],
            cwd=REPOSITORY,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, exp_name):
        """Starts a life and returns its process id."""
        self.server.stdin.write(json.dumps(exp_name) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self):
        """Waits for the end of the life and returns how it ended."""
        return int(self.server.stdout.readline())

    def close(self):
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


def arrays_of(checkpoint):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trees = {}
    for item in ("params", "train_state"):
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            orbax_tree.shapes(checkpoint / item),
        )
        trees[item] = jax.device_get(orbax_tree.read(checkpoint / item, wanted))
    return trees


def half_written(run):
    return list(run.glob(f"*{retention.HALF_WRITTEN}")) if run.is_dir() else []


def wait_until_saving(run, known):
    """Waits until a checkpoint is being written that was not there before."""
    deadline = time.monotonic() + 60
    while set(half_written(run)) <= known:
        if time.monotonic() > deadline:
            pytest.fail(f"no checkpoint was begun; see {run.parents[2] / 'stderr.txt'}")
        time.sleep(0.0005)


@pytest.fixture
def lives(tmp_path):
    """Returns lives of runs in `tmp_path`."""
    with contextlib.closing(Lives(tmp_path)) as made:
        yield made


def errors(directory):
    return (directory / "stderr.txt").read_text()[-3000:]


@pytest.mark.slow  # one process per life
def test_killed_at_twenty_moments_it_ends_as_if_never_killed(lives, tmp_path):
    rng, runs = random.Random(0), tmp_path / "checkpoints" / "debug"
    lives.begin("whole")
    assert lives.end() == 0, errors(tmp_path)

    left_behind = []
    for kill in range(NUM_KILLS):
        process = lives.begin("killed")
        if kill < NUM_EARLY:
            time.sleep(rng.uniform(0.0, 1.5))  # somewhere while it starts or resumes
        else:
            wait_until_saving(runs / "killed", known=set(half_written(runs / "killed")))
            time.sleep(rng.choice((0.0, 1.0)) * rng.uniform(0.0, 0.15))  # inside that save, or soon after
        os.kill(process, signal.SIGKILL)
        assert lives.end() == -signal.SIGKILL, f"life {kill} had ended before it was killed"
        left_behind.append(bool(half_written(runs / "killed")))
        for step in contents.completed_checkpoints(runs / "killed"):  # what has its name is whole
            verification.check(runs / "killed" / str(step))
    assert sum(left_behind) >= 3, "no kill hit a save"

    lives.begin("killed")
    assert lives.end() == 0, errors(tmp_path)
    assert not half_written(runs / "killed")
    whole, killed = (runs / name / str(NUM_STEPS) for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, arrays_of(killed), arrays_of(whole))
    assert contents.completed_checkpoints(runs / "killed") == contents.completed_checkpoints(runs / "whole")
    last = [json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("whole", "killed")]
    assert last[0]["step"] == last[1]["step"] == NUM_STEPS
    assert last[0]["loss"] == last[1]["loss"]
