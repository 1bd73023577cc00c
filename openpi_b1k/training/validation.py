"""How the model does on held-out episodes: its flow loss, and how far sampled chunks are from demonstrated ones.

Samples, noise and flow times are the same each time and whatever the devices, so what differs is the parameters.
"""

import functools
import logging
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from openpi_b1k.config.train import FLOW_LOSS, TrainConfig
from openpi_b1k.data.held_out import HeldOut, open_held_out
from openpi_b1k.data.open import TrainingData
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch
from openpi_b1k.robots.chunk_errors import ErrorSums, step_errors
from openpi_b1k.robots.layout import Layout
from openpi_b1k.sharding import batch_sharding, own_rows
from openpi_b1k.typing import Array, Float, Int, Params

logger = logging.getLogger(__name__)

FOLDER = "validation"
"""Of a run's directory."""
SEED = 0
"""Of noise and times: one for all runs, so that they can be compared."""
FLOW_DRAWS = 4
"""Noise and time draws per sample of the flow loss; they share one pass through the VLM."""
MAX_CHUNKS = 16
"""Samples whose chunks are written."""
MAX_IMAGES = 8
"""Of these, the first ones, whose image is written."""


class Validator:
    """Looks at the held-out episodes of a run; where nothing is held out, or nothing is to be looked at, at nothing."""

    def __init__(
        self, model: Model, mesh: Mesh, config: TrainConfig, data: TrainingData, run_directory: pathlib.Path
    ) -> None:
        """Reads the held-out samples, and compiles nothing yet.

        Args:
            model: in training.
            mesh: that it is trained on.
            config: of the run.
            data: of the run.
            run_directory: where `validation/` is made.

        Raises:
            BadSampleError: a held-out sample cannot be read, and the config does not skip such.
            ValueError: a held-out episode has no prompt of the source's level, or one that is too long.
        """
        sharding = batch_sharding(mesh)
        self._held_out = open_held_out(data, config, sharding) if config.validation_interval else None
        self._layout = data.robot.action
        self._camera = config.data.cameras[0]
        self._directory = run_directory / FOLDER
        self._measure = jax.jit(functools.partial(measure, model), out_shardings=sharding)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look at."""
        return self._held_out is None

    def run(self, params: Params, step: int) -> dict[str, float]:
        """Returns the metrics of all held-out samples, the same on every process; none if it is idle.

        `validation/flow_loss` is the loss of training without augmentation; the others are named after
        `ErrorSums.named`: mean absolute errors in the field's unit, accuracies of grippers. `validation/<step>.npz` in
        the run's directory then holds some chunks, see `write_chunks`. Every process must call it.

        Args:
            params: to act with, adapters included.
            step: completed ones, for the file's name.
        """
        held_out = self._held_out
        if held_out is None:
            return {}
        start = time.perf_counter()
        flow, predicted = np.zeros(2), []
        for number in range(held_out.batching.num_batches):
            errors, counts, chunks = map(own_rows, self._measure(params, *held_out.batch(number)))
            is_counted = held_out.is_counted[held_out.rows(number)]
            flow += [part[is_counted].sum(dtype=np.float64) for part in (errors, counts)]
            predicted.append(held_out.in_units(number, chunks))
        chunks = np.concatenate(predicted)
        own = ErrorSums.of(step_errors(self._layout, held_out.actions, chunks), held_out.step_mask)
        loss, count = summed_over_processes(flow)
        total = ErrorSums(summed_over_processes(own.sums), summed_over_processes(own.counts))
        if jax.process_index() == 0:
            write_chunks(self._directory / f"{step}.npz", held_out, chunks, total, self._layout, self._camera)
        num_samples, seconds = held_out.batching.num_samples, time.perf_counter() - start
        logger.info("step %d: %d held-out samples looked at in %.1f s", step, num_samples, seconds)
        scores = {f"validation/{name}": value for name, value in total.named(self._layout).items()}
        return {FLOW_LOSS: float(loss / count)} | scores


def measure(
    model: Model, params: Params, batch: Batch, numbers: Int[Array, " b"]
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, "b ah ad"]]:
    """Returns each sample's squared errors of the velocity and of how many entries, and a sampled chunk, normalised.

    Args:
        model: whose parameters they are.
        params: to act with.
        batch: of held-out samples.
        numbers: which samples they are; noise and times depend on nothing else.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(SEED)))(numbers)
    flow_keys, chunk_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    noise, flow_time = jax.vmap(lambda key: model.draw(key, 1, FLOW_DRAWS))(flow_keys)
    errors, counts = model.squared_errors(params, batch, noise[:, 0], flow_time[:, 0])
    chunk_noise = jax.vmap(lambda key: jax.random.normal(key, batch.actions.shape[1:]))(chunk_keys)
    steps = model.config.num_flow_steps
    chunks = model.sample_actions(params, batch.observation, chunk_noise, num_flow_steps=steps)
    return jnp.sum(errors, axis=-1), jnp.sum(counts, axis=-1), chunks


def summed_over_processes(values: np.ndarray) -> np.ndarray:
    """Returns the sums, float64, over all processes of each one's `values`; every process must call it.

    They travel as pairs of 32-bit integers, since JAX would round them to float32.
    """
    if jax.process_count() == 1:
        return values
    bits = np.ascontiguousarray(values, np.float64).view(np.uint32)
    return np.ascontiguousarray(multihost_utils.process_allgather(bits)).view(np.float64).sum(axis=0)


def write_chunks(
    path: pathlib.Path, held_out: HeldOut, predicted: np.ndarray, total: ErrorSums, layout: Layout, camera: str
) -> None:
    """Writes some of this process's samples' chunks, and the errors of all, to an npz file: whole or not at all.

    It holds `true_actions` and `predicted_actions` float32 [n, ah, a] in the robot's units, `step_mask` bool [n, ah]
    (true: before the episode's end), `prompts` str [n], `episodes` and `frames` int64 [n], and `images` uint8
    [k, h, w, 3] of the first of them as the model sees them; of all samples `fields` str [f] and by field and step
    `step_errors` float64 [f, ah], NaN at steps that no sample has, and `step_counts` float64 [ah].

    Args:
        path: of the file; its directory is made.
        held_out: samples of this process.
        predicted: chunks of all of its rows [r, ah, a].
        total: of all processes.
        layout: of the actions.
        camera: whose images are written.
    """
    counted = np.flatnonzero(held_out.is_counted)
    rows = counted[np.linspace(0, len(counted) - 1, min(len(counted), MAX_CHUNKS)).astype(int)]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            true_actions=held_out.actions[rows],
            predicted_actions=predicted[rows],
            step_mask=held_out.step_mask[rows],
            prompts=np.asarray([held_out.prompts[row] for row in rows.tolist()]),
            episodes=held_out.episodes[rows],
            frames=held_out.frames[rows],
            images=held_out.fields["images", camera][rows[:MAX_IMAGES]],
            fields=np.asarray(layout.names),
            step_errors=total.by_step(),
            step_counts=total.counts,
        )
    os.replace(unfinished, path)
