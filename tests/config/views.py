"""What can be seen of a config from outside: each view is a function of a config, cheap, and comparable with `==`.

Whatever would take seconds is replaced by something that notes how it was called.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import pickle
import re
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k import compilation, metrics, sharding
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.batch_memory import OwnBlocks
from openpi_b1k.data.batches import Shares
from openpi_b1k.data.held_out import open_held_out
from openpi_b1k.data.loader import Loader
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.data.sources import data_root, open_source
from openpi_b1k.models.augment import augment
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample import demos
from openpi_b1k.serving.jax_backend import compiled_sampler
from openpi_b1k.training import distributed, loop, plan_choice, runs, start
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import TrainState, abstract_state
from openpi_b1k.training.step import train_step
from openpi_b1k.training.watchdog import Watchdog
from openpi_b1k.training.window import NonFiniteLossError, Window
from scripts import train as script


def digest(tree):
    """Returns a hash of a tree of arrays."""
    named = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    text = pickle.dumps([(name, array.dtype.str, array.shape, array.tobytes()) for name, array in named])
    return hashlib.sha256(text).hexdigest()


# The model


@functools.cache
def shapes(model: ModelConfig):
    """Returns the shapes of the model's parameters."""
    return jax.tree.map(lambda leaf: leaf.shape, Model(model).abstract_params())


def vision(config):
    return shapes(config.model)["vision"]


def vlm(config):
    return shapes(config.model)["vlm"]


def action_expert(config):
    return shapes(config.model)["action_expert"]


def suffix(config):
    return shapes(config.model)["suffix"]


def abstract_params(config):
    return shapes(config.model)


def abstract_batch(config, num=2):
    """Returns a batch of the model's sizes, without values."""
    model = config.model
    images = {name: jax.ShapeDtypeStruct((num, model.image_size, model.image_size, 3), jnp.uint8) for name in "ab"}
    tokens = (num, model.max_prompt_tokens)
    chunk = (num, model.action_horizon, model.action_dim)
    observation = Observation(
        images,
        dict.fromkeys(images, jax.ShapeDtypeStruct((num,), bool)),
        jax.ShapeDtypeStruct((num, model.action_dim), jnp.float32),
        jax.ShapeDtypeStruct(tokens, jnp.int32),
        jax.ShapeDtypeStruct(tokens, bool),
    )
    return Batch(observation, jax.ShapeDtypeStruct(chunk, jnp.float32), jax.ShapeDtypeStruct(chunk, bool))


def loss_program(config):
    """Returns the computation of loss and gradient as text, traced and not compiled."""
    model = Model(config.model)

    def loss(params, batch):
        return model.loss(params, batch, jax.random.key(0), flow_samples=config.flow_samples)[0]

    program = jax.make_jaxpr(jax.grad(loss))(model.abstract_params(), abstract_batch(config))
    return re.sub("0x[0-9a-f]+", "", str(program))


def sampling_program(config):
    """Returns the computation that serving runs, as text."""
    params, observation = Model(config.model).abstract_params(), abstract_batch(config).observation
    return str(jax.make_jaxpr(compiled_sampler(config.model))(params, observation, jax.random.key(0)))


# Data


def batch(config):
    """Returns a hash of the run's first batch."""
    data = open_training_data(config)
    rows = Rows(config.batch_size, 0, config.batch_size, num_workers=1)
    fields, _ = Shares(data.mixture, rows, is_skipping=False).batch(0, OwnBlocks())
    return digest(fields)


def batch_or_refusal(config):
    """Returns `batch`, or what is said instead."""
    try:
        return batch(config)
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def root(config):
    """Returns where demonstrations are looked for, there or not."""
    try:
        return data_root(config.data)
    except FileNotFoundError as error:
        return str(error)


def demonstrations(config):
    """Returns what a run reads of demonstrations, or what is said instead."""
    try:
        source = open_source(config.data, config, num_readers=1)
    except ValueError as error:
        return str(error)
    first, index = source.dataset[0], source.demonstrations.index
    prompts = [source.dataset[i]["prompt"] for i in range(0, len(source.dataset), 7)]
    windows = [index.numbers.tolist(), index.begins.tolist(), index.ends.tolist()]
    held_out = source.demonstrations.validation.numbers.tolist()
    return (
        source.order.num_samples,
        prompts,
        windows,
        held_out,
        {name: str(value)[:99] for name, value in first.items()},
    )


def held_out(config):
    """Returns which samples of held-out episodes are looked at."""
    config = dataclasses.replace(config, batch_size=4)
    samples = open_held_out(open_training_data(config), config, sharding.batch_sharding(sharding.make_mesh(1)))
    return [samples.episodes.tolist(), samples.frames.tolist(), samples.is_counted.tolist()]


def sequence(config):
    """Returns which samples of which sources come first, and which are decoded together."""
    mixture = open_training_data(config).mixture
    addresses = [mixture.address(n) for n in range(192)]
    return [(source, index, None if run is None else run.tolist()) for source, index, run in addresses]


def statistics(config):
    """Returns what the sources are normalised with, or what is said instead."""
    try:
        data = open_training_data(config)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return [source.pipeline.transforms[2].norm_stats.to_json() for source in data.mixture.sources]


def log_of_data(config):
    """Returns what is logged about the data."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("openpi_b1k.data")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        open_training_data(config)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    return [record for record in records if record.startswith("source")]


def skipping(config):
    """Returns what a batch says that holds a sample which cannot be read."""
    data = open_training_data(config)

    def spoiled(i, run=None):
        if i == data.mixture.address(0).index:
            raise BadSampleError("spoiled")
        return data.dataset[i]

    with mock.patch.object(type(data.dataset), "get", lambda self, i, run=None: spoiled(i, run)):
        loader = Loader(data.mixture, config, sharding.batch_sharding(sharding.make_mesh(1)))
        try:
            next(loader)
        except BadSampleError as error:
            return str(error)
        finally:
            loader.close()
        return loader.skipped_samples


def workers(config):
    """Returns what worker processes are asked for, without starting them."""
    asked = []
    data = open_training_data(config)

    def note(shares, start_step, ahead):
        asked.append((shares.rows.num_workers, ahead))
        raise InterruptedError

    with mock.patch("openpi_b1k.data.loader.Workers", note), contextlib.suppress(InterruptedError):
        Loader(data.mixture, config, sharding.batch_sharding(sharding.make_mesh(1))).close()
    return asked


def made_demonstrations(config):
    """Returns which demonstrations of the sample world are asked for."""
    with mock.patch.object(demos, "make", lambda *args: args):
        return demos.ensure(config).data.root


# Training


class StubModel:
    """A model of two parameters, whose errors show what it is given."""

    PARAMS = {"suffix": {"kernel": jnp.array([1.0, -2.0, 3.0]), "bias": jnp.array([0.5])}}  # noqa: RUF012 - nobody changes it
    mesh = None

    def draw(self, key, b, flow_samples):
        return jax.random.normal(key, (b, flow_samples, 3)), jnp.zeros((b, flow_samples))

    def squared_errors(self, params, batch, noise, time):
        layer = params["suffix"]
        errors = ((layer["kernel"] - noise) ** 2).sum(axis=1) + (layer["bias"] ** 3).sum()
        return errors, jnp.full(errors.shape, float(noise.shape[1]))


def stub_step(config):
    """Returns the update of a stub, its first state and its batch."""
    optimizer = make_optimizer(config)
    params = StubModel.PARAMS
    average = None if config.ema_decay is None else params
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), average)
    observation = Observation({"head": jnp.zeros((4, 8, 8, 3), jnp.uint8)}, {}, jnp.zeros(4), None, None)
    batch = Batch(observation, jnp.zeros((4, 3)), jnp.ones((4, 3), bool), jnp.zeros(4, jnp.int32))
    return train_step(StubModel(), optimizer, config), state, batch


def updates(config):
    """Returns state and metrics after four updates of a stub."""
    step, state, batch = stub_step(config)
    step = jax.jit(step)
    for _ in range(4):
        state, measured = step(state, batch)
    return digest((state, measured))


def update_program(config):
    """Returns the computation of an update as text, traced and not compiled."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(stub_step(config)[0])(*stub_step(config)[1:])))


def variation_program(config):
    """Returns the computation that varies images, as text."""
    images = {name: jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.uint8) for name in config.data.cameras}
    masks = dict.fromkeys(images, jax.ShapeDtypeStruct((2,), bool))
    observation = dataclasses.replace(abstract_batch(config).observation, images=images, image_masks=masks)
    keys = jax.random.split(jax.random.key(0), 2)
    program = jax.make_jaxpr(lambda observation: augment(observation, keys, config.augmentation))(observation)
    return re.sub("0x[0-9a-f]+", "", str(program))


def patience(config):
    """Returns after how many updates that are no numbers a run gives up."""
    window = Window(config, r1pro("like_action").action, pathlib.Path("run"))
    measured = {"loss": np.float32(np.nan), "is_finite": np.bool_(False), "grad_norm/vision": np.float32(np.nan)}
    for step in range(100):
        try:
            window.add(step, measured, 0.0)
        except NonFiniteLossError:
            return step
    return None


def refusal(config):
    """Returns what is said of a run on a device with next to no memory."""
    try:
        return plan_choice.check(config, 1, 1e3)
    except ValueError as error:
        return str(error)


def connection(config):
    """Returns what JAX is told of the other processes."""
    launch = distributed.launched(config.distributed, {})
    if launch is None:
        return None
    with mock.patch.object(jax.distributed, "initialize") as told, mock.patch.object(jax.config, "update"):
        distributed.initialize(config.distributed, launch)
    return told.call_args


def compiler_flags(config):
    """Returns the flags that a run sets for XLA."""
    with (
        mock.patch.dict("os.environ", {"XLA_FLAGS": ""}),
        mock.patch("faulthandler.enable"),
        mock.patch.object(metrics, "setup_logging"),
        mock.patch.object(compilation, "keep_programs"),
    ):
        flags = []
        distributed.run(lambda config: flags.append(os.environ["XLA_FLAGS"]) or 0, config)
        return flags


def plan(config):
    """Returns shape and share per device of everything that training keeps."""
    model, mesh = Model(config.model), sharding.make_mesh(config.fsdp)
    state = abstract_state(model, make_optimizer(config), config, mesh)
    return [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), leaf.sharding.shard_shape(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def initial_weights(config):
    """Returns where the first parameters come from: an address, or `random`."""
    drawn = mock.patch.object(start, "random_state", return_value="random")
    read = mock.patch.object(start, "load_params", lambda address, *_, kind, draw: (address, kind))
    kept = mock.patch.object(start, "state_from_params", lambda params, *_: params)
    with tempfile.TemporaryDirectory() as directory, drawn, read, kept:
        config = dataclasses.replace(config, checkpoint_dir=directory)
        return start.start(config, open_training_data(config)).state


def run_directory(config):
    """Returns where a run goes, or why it does not, beside a run called `old`."""
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        (pathlib.Path(config.checkpoint_dir) / config.name / "old").mkdir(parents=True)
        try:
            return runs.choose(config).directory
        except (FileExistsError, FileNotFoundError) as error:
            return str(error)


class Notes:
    """Stands for the checkpoint manager and for the writers of a run, and notes when they are used."""

    def __init__(self, *args):
        self.events = [args]

    def save(self, step, *_):
        self.events.append(("save", step))

    def write(self, step, values):
        self.events.append(("write", step))

    def write_image(self, step, name, path):
        """Needs no picture."""

    def run(self, params, step):
        self.events.append(("validate", step))
        return {}

    def check(self):
        """Finds nothing wrong."""

    def close(self):
        """Has nothing to close."""


def course(config):
    """Returns when a run writes metrics and saves, with which settings, without computing anything."""
    mesh, data = sharding.make_mesh(config.fsdp), open_training_data(config)
    state = TrainState(jnp.int32(0), {}, {}, (), None)
    measured = {"loss": 1.0, "loss_per_dim": np.ones(32), "source_loss": np.ones(1), "source_count": np.ones(1)}
    measured |= {"grad_norm": 1.0, "is_finite": True}
    training = start.Training(config, data, mesh, None, None, state, pathlib.Path("run"), 0, 0)
    notes = Notes(config.checkpoints)
    with contextlib.ExitStack() as stack:
        replaced = {
            "CheckpointManager": lambda directory, settings: notes,
            "Validator": lambda *args: notes,
            "Watchdog": lambda directory, timeout, process: (
                notes.events.append(timeout) or Watchdog(directory, timeout)
            ),
            "Trace": lambda *args, is_wanted: notes.events.append(is_wanted) or mock.Mock(),
            "show_first_batch": lambda *args: None,
            "open_writers": lambda training: notes,
            "compiled_step": lambda training, state: lambda state, batch: (state, measured),
            "completed_checkpoints": lambda directory: [0],
        }
        for name, stub in replaced.items():
            stack.enter_context(mock.patch.object(loop, name, stub))
        loop.train(training)
    return notes.events


def tracking(config):
    """Returns what wandb and TensorBoard are asked for."""
    asked = []
    wandb = mock.patch.object(metrics, "Wandb", lambda directory, fields: asked.append(fields) or Notes())

    def open_board(path, *, completed_steps):
        asked.append({})
        return Notes()

    board = mock.patch.object(metrics, "TensorBoard", open_board)
    with wandb, board, tempfile.TemporaryDirectory() as directory:
        training = mock.Mock(config=config, directory=pathlib.Path(directory), completed_steps=0)
        loop.open_writers(training).close()
    return [(fields.get("wandb"), fields.get("wandb_project")) for fields in asked]


def rollouts(config):
    """Returns how many episodes the script plays after training."""
    played = []

    def evaluate(checkpoint, *, episodes, seed):
        played.append((episodes, seed))
        return mock.Mock()

    with (
        mock.patch("openpi_b1k.training.start.start"),
        mock.patch("openpi_b1k.training.loop.train"),
        mock.patch("openpi_b1k.metrics.setup_logging"),
        mock.patch("openpi_b1k.evaluation.closed_loop.sample_world.evaluate", evaluate),
        mock.patch.object(demos, "make", return_value="made"),
    ):
        assert script.run(config) == 0
    return played
