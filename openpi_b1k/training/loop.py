"""The training loop: take a batch, make a step, and now and then write metrics, look at held-out episodes or save."""

import contextlib
import dataclasses
import logging
import pathlib
from types import TracebackType
from typing import Self

import jax

from openpi_b1k import metrics, sharding
from openpi_b1k.checkpoints.contents import completed_checkpoints
from openpi_b1k.checkpoints.failures import CheckpointError
from openpi_b1k.checkpoints.manager import CheckpointManager
from openpi_b1k.config import serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.loader import Loader
from openpi_b1k.data.workers import WorkerError
from openpi_b1k.observation import Batch
from openpi_b1k.training import devices, flops, preview, report
from openpi_b1k.training.dump import dump
from openpi_b1k.training.start import Training, checkpoint_files
from openpi_b1k.training.state import TrainState, acting, shardings_of, split
from openpi_b1k.training.step import StepFunction, train_step
from openpi_b1k.training.stopping import InterruptedTraining, StopRequest
from openpi_b1k.training.trace import Trace
from openpi_b1k.training.validation import Validator
from openpi_b1k.training.watchdog import Watchdog
from openpi_b1k.training.window import STEPS_IN_FLIGHT, Compute, NonFiniteLossError, Window

logger = logging.getLogger(__name__)

RUN_ERRORS = (NonFiniteLossError, CheckpointError, BadSampleError, WorkerError, ConnectionError)
"""What can end a run that has begun."""


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    validate: bool
    save: bool
    stop: bool

    @classmethod
    def after(cls, completed: int, config: TrainConfig, *, is_stopping: bool) -> "Due":
        """Returns it for the step number `completed`; a run that is told to stop saves at once and no more."""
        is_last = completed == config.num_steps
        is_save = is_last or completed % config.checkpoints.save_every == 0
        interval = config.validation_interval
        is_validation = interval > 0 and (is_save or completed % interval == 0)
        return cls(
            log=is_last or is_stopping or completed % config.log_every == 0,
            validate=is_validation and not is_stopping,
            save=is_save or is_stopping,
            stop=is_stopping and not is_last,
        )


def train(training: Training) -> pathlib.Path:
    """Trains to the run's last step; returns the directory of the last checkpoint.

    Raises:
        NonFiniteLossError: loss or gradient was no number for too many steps in a row; earlier checkpoints are kept,
            and the batch is on disk.
        CheckpointError: a checkpoint could not be written; earlier ones are kept.
        InterruptedTraining: SIGINT or SIGTERM came; the run has been saved and can be resumed.
        BadSampleError: a sample cannot be read, and the config does not skip such.
        WorkerError: a worker process of the loader was killed.
        ConnectionError: wandb refuses.
    """
    config, directory = training.config, training.directory
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(contextlib.closing(open_writers(training)))
        checkpoints = stack.enter_context(contextlib.closing(CheckpointManager(directory, config.checkpoints)))
        watchdog = stack.enter_context(Watchdog(directory, config.hang_timeout_s, jax.process_index()))
        loader = stack.enter_context(contextlib.closing(open_loader(training)))
        bar = stack.enter_context(contextlib.closing(open_bar(training)))
        stop = stack.enter_context(StopRequest())
        trace = stack.enter_context(contextlib.closing(open_trace(training)))
        window = Window(config, training.data.robot.action, directory, compute(training))
        validator = Validator(training.model, training.mesh, config, training.data, directory)
        recent = stack.enter_context(RecentBatches(training))
        state = training.take_state()
        step = compiled_step(training, state)

        for completed in range(training.completed_steps + 1, config.num_steps + 1):
            batch = next(loader)
            recent.add(completed, batch)
            is_first = completed == training.completed_steps + 1
            if is_first:
                report.log_batch(batch)
                show_first_batch(training, batch, writers)
            with watchdog.pause() if is_first else contextlib.nullcontext():
                state, measured = step(state, batch)
                window.add(completed, measured, loader.data_wait_s, loader.skipped_samples)
            watchdog.beat(completed)
            trace.advance(completed, measured)
            bar.advance(window.newest)
            checkpoints.check()

            due = Due.after(completed, config, is_stopping=stop.is_agreed(completed))
            scores: dict[str, float] = {}
            if due.validate:
                with watchdog.pause(), window.pause("validation_s"):
                    scores = validator.run(acting(state), completed)
            if due.save:
                with watchdog.pause(), window.pause("checkpoint_stall_s"):
                    checkpoints.save(completed, split(state, config), checkpoint_files(training, completed), scores)
            if due.log or scores:
                line = (window.close() if due.log else {}) | scores
                writers.write(completed, line)
                bar.show(line)
            if due.stop:
                raise InterruptedTraining(how_to_continue(training, completed), stop.signal_number)
    return directory / str(max(completed_checkpoints(directory)))


def show_first_batch(training: Training, batch: Batch, writers: metrics.MetricsWriters) -> None:
    """Draws what the model is given, before and after augmentation, into the run's directory and to the writers."""
    if jax.process_index() == 0:
        varied = preview.augmented_rows(batch, training.config, training.completed_steps)
        path = training.directory / preview.FILE
        preview.write_preview(path, batch, varied, training.data.robot, training.data.tokenizer.decode)
        writers.write_image(training.completed_steps, path.stem, path)


class RecentBatches:
    """The batches of steps that may still be under way, written to the run's directory if one of them goes wrong."""

    def __init__(self, training: Training) -> None:
        """Starts empty."""
        self._training = training
        self._batches: dict[int, Batch] = {}

    def add(self, step: int, batch: Batch) -> None:
        """Keeps the batch of a step, and lets go of one whose step is done."""
        self._batches[step] = batch
        self._batches.pop(step - STEPS_IN_FLIGHT - 1, None)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes the batch that a NonFiniteLossError is about."""
        if isinstance(error, NonFiniteLossError) and error.step in self._batches:
            directory, config = self._training.directory, self._training.config
            path = dump(directory, error.step, self._batches[error.step], error.metrics, config)
            logger.error("batch, norms and suspicious entries of step %d are in %s", error.step, path)


def compute(training: Training) -> Compute | None:
    """Returns what the model's share of the devices' peak is calculated from; None for devices of unknown speed."""
    peak = devices.peak_flops(training.mesh.devices.ravel()[0].device_kind)
    return None if peak is None else Compute(flops.flops_per_sample(training.config), peak)


def open_trace(training: Training) -> Trace:
    """Returns the recorder of a few steps, which does nothing unless the config wants it."""
    is_wanted = training.config.profile and jax.process_index() == 0
    return Trace(training.directory, training.completed_steps, is_wanted=is_wanted)


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


def how_to_continue(training: Training, completed_steps: int) -> str:
    """Returns what to tell the user of a run that was stopped."""
    config = training.config
    return (
        f"stopped after {completed_steps} of {config.num_steps} steps, saved in {training.directory}. Continue with "
        f"the same command and --resume --exp-name {config.exp_name}, without --overwrite"
    )
