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
from openpi_b1k.checkpoints import contents, failures, manager
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.config import serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.open import TrainingData, open_training_data
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import devices, plan_choice, report, runs
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.plan import line as plan_line
from openpi_b1k.training.state import (
    TrainState,
    abstract_items,
    abstract_state,
    full,
    merge,
    random_groups,
    random_state,
    shardings_of,
    state_from_params,
)
from openpi_b1k.training.trainable import without_adapters
from openpi_b1k.typing import PyTree

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


def start(config: TrainConfig, data: TrainingData | None = None) -> Training:
    """Returns a run at its first step, or, if the config resumes one, where its last checkpoint left it.

    Args:
        config: of the run; what it leaves to auto is decided here.
        data: of the config; default: opened here, once what is cheaper to check has been.

    Raises:
        ValueError: devices, memory, disk, batch, name, data, weights or checkpoint do not fit the config.
        FileExistsError: the run exists, and the config neither resumes nor overwrites it.
        FileNotFoundError: there is nothing to resume, or no data or weights where the config says.
        ConnectionError: the weights cannot be downloaded.
    """
    config = decide(config)
    run = runs.choose(config)
    config = dataclasses.replace(config, exp_name=run.directory.name)
    mesh = sharding.make_mesh(int(config.fsdp))
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    abstract = abstract_state(model, optimizer, config, mesh)
    items = abstract_items(abstract, config)
    failures.check_space(run.directory, failures.tree_bytes(items))
    report.log_run(config, mesh, abstract)
    data = open_training_data(config) if data is None else data
    training = Training(config, data, mesh, model, optimizer, None, run.directory, 0, 0)
    if run.last_checkpoint is not None:
        return _resumed(training, items, run.last_checkpoint)
    training.state = _first_state(training, abstract)
    runs.create(run)
    if jax.process_index() == 0:
        (run.directory / contents.CONFIG_FILE).write_text(serialize.to_json(config))
    return training


def decide(config: TrainConfig) -> TrainConfig:
    """Returns the config with fsdp, microbatches and remat as the memory plan has them for the devices at hand.

    Raises:
        ValueError: the run does not fit them, or the model is too large for a CPU; the message has the flags to change.
    """
    devices.check_backend(config, jax.default_backend())
    memory = devices.memory_of(jax.local_devices()[0])
    config = plan_choice.resolve(config, jax.device_count(), memory, jax.local_device_count())
    plan = plan_choice.check(config, jax.device_count(), memory, jax.local_device_count())
    logger.info("%s", plan_line(plan, memory))
    return config


def _first_state(training: Training, abstract: TrainState) -> TrainState:
    """Returns the state of a run that begins: random, or around the weights that the config names."""
    config, model, optimizer = training.config, training.model, training.optimizer
    if config.weights == "none":
        return random_state(model, optimizer, config, abstract)
    dense = without_adapters(full(abstract))
    params = load_params(
        config.weights,
        dense,
        shardings_of(dense),
        kind=config.weights_kind,
        draw=functools.partial(random_groups, model, config, dense),
    )
    return state_from_params(params, model, optimizer, config, abstract)


def source_infos(data: TrainingData) -> tuple[contents.SourceInfo, ...]:
    """Returns what a checkpoint says about the data sets of a run."""
    return tuple(
        contents.SourceInfo(source.config.name, source.fingerprint, source.revision) for source in data.sources
    )


def checkpoint_files(training: Training, completed_steps: int) -> dict[str, bytes]:
    """Returns what a checkpoint holds besides arrays."""
    config, data = training.config, training.data
    steps_here = completed_steps - training.completed_steps
    start = -(-training.samples_consumed // config.batch_size) * config.batch_size
    info = contents.CheckpointInfo(
        completed_steps=completed_steps,
        samples_consumed=start + steps_here * config.batch_size,
        data_fingerprint=data.fingerprint,
        has_ema=config.ema_decay is not None,
        code_version=contents.code_version(),
        beyond_openpi=contents.beyond_openpi(config),
        sources=source_infos(data),
        state_layout=contents.describe_layout(data.robot.state),
        action_layout=contents.describe_layout(data.robot.action),
        mesh=dict(training.mesh.shape),
        process_count=jax.process_count(),
    )
    config = dataclasses.replace(config, resume=False, overwrite=False)
    return contents.files(config, info, contents.Assets(data.norm_stats, data.prompts, data.tokenizer.model_bytes))


def _resumed(training: Training, abstract: dict[str, PyTree], checkpoint: pathlib.Path) -> Training:
    """Returns the run as it was when `checkpoint` was saved."""
    runs.check_resumable(training.config, contents.read_config(checkpoint), checkpoint)
    info = contents.read_info(checkpoint)
    runs.check_data(info, training.data.fingerprint, source_infos(training.data))
    stored = contents.read_assets(checkpoint).norm_stats
    runs.check_norm_stats(stored.to_json(), training.data.norm_stats.to_json(), checkpoint)
    training.state = merge(manager.restore(checkpoint, abstract), training.config)
    training.completed_steps, training.samples_consumed = info.completed_steps, info.samples_consumed
    logger.info("resumed from %s after %d steps", checkpoint, info.completed_steps)
    return training
