"""Runs a small training again and again, each time in a process of its own that can be killed.

For each line of standard input, the name of a run as JSON, it forks a process that trains, prints its id and later how
it ended. What takes long, importing, is done once; JAX starts in the forked process. All is as in any run, but for the
network, which is one layer: the real one takes seconds to trace in every life.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.optimization import NO_AUGMENTATION
from openpi_b1k.config.train import CheckpointConfig
from openpi_b1k.data.open import open_training_data
from openpi_b1k.models import flow_matching
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import loop, start
from tests.training.conftest import make_small_config

NUM_STEPS = 60


class OneLayer(Model):
    """A model whose velocity is one linear map of the noisy actions."""

    def abstract_params(self):
        d = self.config.action_dim
        shapes = {"kernel": jax.ShapeDtypeStruct((d, d), np.float32), "bias": jax.ShapeDtypeStruct((d,), np.float32)}
        return {"suffix": {"action_in_proj": shapes}}

    def logical_axes(self):
        return {"suffix": {"action_in_proj": {"kernel": ("embed", "action"), "bias": ("bias",)}}}

    def init_params(self, key):
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), self.abstract_params())

    def squared_errors(self, params, batch, noise, time):
        layer = params["suffix"]["action_in_proj"]
        noisy, target = flow_matching.flow_path(batch.actions[:, None], noise, time)
        velocity = noisy @ layer["kernel"] + layer["bias"]
        return flow_matching.masked_squared_errors(velocity, target, batch.action_mask)


def decide(config):
    """Returns the config without asking the memory plan, which traces the real network."""
    return dataclasses.replace(
        config, fsdp=1, microbatches=1, model=dataclasses.replace(config.model, remat="none"), ignore_memory_plan=True
    )


def make_config(directory, exp_name):
    """Returns the run's config; it resumes what an earlier life of the run has saved."""
    small = make_small_config(directory)
    run = pathlib.Path(small.checkpoint_dir) / "debug" / exp_name
    can_resume = bool(contents.completed_checkpoints(run))
    return dataclasses.replace(
        small,
        exp_name=exp_name,
        resume=can_resume,
        overwrite=not can_resume,
        checkpoints=CheckpointConfig(save_every=1, keep_last=2, keep_every=20),
        num_steps=NUM_STEPS,
        log_every=1,
        fsdp=1,
        validation_interval=0,
        augmentation=NO_AUGMENTATION,
    )


def train(directory, exp_name):
    """Trains to the end, unless it is killed."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    start.Model, start.decide = OneLayer, decide
    config = make_config(directory, exp_name)
    loop.train(start.start(config, open_training_data(config)))


def main():
    """Forks one training per line of standard input."""
    directory = pathlib.Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.dup2(os.open(directory / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
            train(directory, json.loads(line))
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
