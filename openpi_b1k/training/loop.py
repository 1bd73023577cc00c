"""The training loop: take a batch, make a step, and now and then write metrics or save."""

import contextlib
import dataclasses
import pathlib

import jax

from openpi_b1k import metrics, sharding
from openpi_b1k.checkpoints.contents import (
    Assets,
    CheckpointInfo,
    beyond_openpi,
    code_version,
    completed_checkpoints,
    files,
)
from openpi_b1k.checkpoints.manager import CheckpointManager
from openpi_b1k.config import serialize
from openpi_b1k.data.loader import Loader
from openpi_b1k.training import report
from openpi_b1k.training.start import Training, source_infos
from openpi_b1k.training.state import TrainState, shardings_of, split
from openpi_b1k.training.step import StepFunction, train_step
from openpi_b1k.training.stopping import InterruptedTraining, StopRequest
from openpi_b1k.training.window import Window


def train(training: Training) -> pathlib.Path:
    """Trains to the run's last step; returns the directory of the last checkpoint.

    Raises:
        NonFiniteLossError: the loss or its gradient is not a number; earlier checkpoints are kept.
        InterruptedTraining: SIGINT or SIGTERM came; the run has been saved and can be resumed.
        BadSampleError: a sample cannot be read, and the config does not skip such.
        WorkerError: a worker process of the loader was killed.
    """
    config = training.config
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(CheckpointManager(training.directory, config.checkpoints)))
        loader = stack.enter_context(contextlib.closing(open_loader(training)))
        writers = stack.enter_context(contextlib.closing(open_writers(training)))
        bar = stack.enter_context(contextlib.closing(open_bar(training)))
        stop = stack.enter_context(StopRequest())
        window = Window(config.batch_size, training.data.robot.action, training.directory)
        state = training.take_state()
        step = compiled_step(training, state)

        for completed in range(training.completed_steps + 1, config.num_steps + 1):
            batch = next(loader)
            if completed == training.completed_steps + 1:
                report.log_batch(batch)
            state, measured = step(state, batch)
            window.add(completed, measured, loader.data_wait_s, loader.skipped_samples)
            bar.advance(window.newest)

            is_last = completed == config.num_steps
            is_log_due = is_last or completed % config.log_every == 0
            is_stopping = stop.is_agreed(is_sync_point=is_log_due)
            if is_log_due or is_stopping:
                line = window.close()
                writers.write(completed, line)
                bar.show(line)
                checkpoints.check()
            if is_last or is_stopping or completed % config.checkpoints.save_every == 0:
                window.check()
                checkpoints.save(completed, *split(state), checkpoint_files(training, completed))
            if is_stopping and not is_last:
                raise InterruptedTraining(how_to_continue(training, completed), stop.signal_number)
    return training.directory / str(max(completed_checkpoints(training.directory)))


def compiled_step(training: Training, state: TrainState) -> StepFunction:
    """Returns the update, which reuses the memory of the state it is given and leaves each array where it was."""
    step = train_step(training.model, training.optimizer, training.config)
    out_shardings = (shardings_of(state), sharding.replicated(training.mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def open_loader(training: Training) -> Loader:
    """Returns the loader at the run's position. With another batch size than before, that is the next whole batch."""
    config = training.config
    start_step = -(-training.samples_consumed // config.batch_size)
    return Loader(training.data.mixture, config, sharding.batch_sharding(training.mesh), start_step)


def open_writers(training: Training) -> metrics.MetricsWriters:
    """Returns the writers of the run's metrics."""
    return metrics.open_writers(
        training.directory,
        serialize.flatten(training.config),
        is_main=jax.process_index() == 0,
        completed_steps=training.completed_steps,
    )


def open_bar(training: Training) -> metrics.ProgressBar:
    """Returns the run's progress bar."""
    return metrics.ProgressBar(
        training.config.num_steps, completed_steps=training.completed_steps, is_main=jax.process_index() == 0
    )


def checkpoint_files(training: Training, completed_steps: int) -> dict[str, bytes]:
    """Returns what a checkpoint holds besides arrays."""
    config, data = training.config, training.data
    steps_here = completed_steps - training.completed_steps
    start = -(-training.samples_consumed // config.batch_size) * config.batch_size
    info = CheckpointInfo(
        completed_steps=completed_steps,
        samples_consumed=start + steps_here * config.batch_size,
        data_fingerprint=data.fingerprint,
        has_ema=config.ema_decay is not None,
        code_version=code_version(),
        beyond_openpi=beyond_openpi(config),
        sources=source_infos(data),
    )
    config = dataclasses.replace(config, resume=False, overwrite=False)
    return files(config, info, Assets(data.norm_stats, data.prompts, data.tokenizer.model_bytes))


def how_to_continue(training: Training, completed_steps: int) -> str:
    """Returns what to tell the user of a run that was stopped."""
    config = training.config
    return (
        f"stopped after {completed_steps} of {config.num_steps} steps, saved in {training.directory}. Continue with "
        f"the same command and --resume --exp-name {config.exp_name}, without --overwrite"
    )
