"""Everything between a config and the first step: checks, weights, state, the run's directory.

Order matters: all that can be refused is refused before anything is deleted or trained.
"""

import dataclasses
import functools
import logging
import pathlib

import jax
import optax

from openpi_b1k import sharding
from openpi_b1k.checkpoints import contents, manager
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.open import TrainingData
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import report, runs
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import (
    TrainState,
    abstract_state,
    merge,
    random_groups,
    random_state,
    shardings_of,
    split,
    state_from_params,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Training:
    """A run that is ready to go on."""

    config: TrainConfig
    """With the run's name filled in."""
    data: TrainingData
    mesh: jax.sharding.Mesh
    model: Model
    optimizer: optax.GradientTransformation
    state: TrainState | None
    """Where the run stands; None once `take_state` has handed it over."""
    directory: pathlib.Path
    completed_steps: int
    samples_consumed: int

    def take_state(self) -> TrainState:
        """Returns the state and lets go of it, since the first step uses its memory up.

        Raises:
            RuntimeError: it has been taken.
        """
        state, self.state = self.state, None
        if state is None:
            raise RuntimeError("this training has been run; start another")
        return state


def start(config: TrainConfig, data: TrainingData) -> Training:
    """Returns a run at its first step, or, if the config resumes one, where its last checkpoint left it.

    Raises:
        ValueError: devices, batch, name, weights or checkpoint do not fit the config.
        FileExistsError: the run exists, and the config neither resumes nor overwrites it.
        FileNotFoundError: there is nothing to resume, or no weights where the config says.
        ConnectionError: the weights cannot be downloaded.
    """
    mesh = sharding.make_mesh(config.fsdp)
    runs.check_batch_size(config, mesh.size)
    run = runs.choose(config)
    config = dataclasses.replace(config, exp_name=run.directory.name)
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    abstract = abstract_state(model, optimizer, config, mesh)
    report.log_run(config, mesh, abstract)
    training = Training(config, data, mesh, model, optimizer, None, run.directory, 0, 0)
    if run.last_checkpoint is not None:
        return _resumed(training, abstract, run.last_checkpoint)
    if config.weights == "none":
        training.state = random_state(model, optimizer, config, abstract)
    else:
        params = load_params(
            config.weights,
            abstract.params,
            shardings_of(abstract.params),
            kind=config.weights_kind,
            draw=functools.partial(random_groups, model, config, abstract.params),
        )
        training.state = state_from_params(params, optimizer, config, abstract)
    runs.create(run)
    return training


def source_infos(data: TrainingData) -> tuple[contents.SourceInfo, ...]:
    """Returns what a checkpoint says about the data sets of a run."""
    return tuple(
        contents.SourceInfo(source.config.name, source.fingerprint, source.revision) for source in data.sources
    )


def _resumed(training: Training, abstract: TrainState, checkpoint: pathlib.Path) -> Training:
    """Returns the run as it was when `checkpoint` was saved."""
    runs.check_resumable(training.config, contents.read_config(checkpoint), checkpoint)
    info = contents.read_info(checkpoint)
    runs.check_data(info, training.data.fingerprint, source_infos(training.data))
    stored = contents.read_assets(checkpoint).norm_stats
    runs.check_norm_stats(stored.to_json(), training.data.norm_stats.to_json(), checkpoint)
    training.state = merge(*manager.restore(checkpoint, *split(abstract)))
    training.completed_steps, training.samples_consumed = info.completed_steps, info.samples_consumed
    logger.info("resumed from %s after %d steps", checkpoint, info.completed_steps)
    return training
