"""Held-out samples: the same ones each time, spread over episodes, read once and kept in memory by rows of batches."""

import concurrent.futures
import dataclasses
import logging
import os
import time
from collections.abc import Sequence

import jax
import numpy as np

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.b1k import B1kDataset, BadSampleError
from openpi_b1k.data.batch_memory import Path
from openpi_b1k.data.batches import flatten, nest
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.loader import place_batch, process_rows
from openpi_b1k.data.open import TrainingData
from openpi_b1k.data.order.spread import Place, choose
from openpi_b1k.data.prompts import open_prompts
from openpi_b1k.data.sources import OpenedSource
from openpi_b1k.observation import Batch
from openpi_b1k.transforms.base import Sample, Transform
from openpi_b1k.transforms.pipeline import output_pipeline

logger = logging.getLogger(__name__)

MAX_THREADS = 8
"""That read and decode samples."""


@dataclasses.dataclass(frozen=True)
class Batching:
    """Batches of equal size, split over the devices; the rows behind the last sample do not count."""

    num_samples: int
    """Over all processes."""
    num_batches: int
    batch_size: int
    sharding: jax.sharding.Sharding

    @classmethod
    def of(cls, num_samples: int, max_rows: int, sharding: jax.sharding.Sharding) -> "Batching":
        """Returns as few batches as hold the samples, of about equal size: a multiple of the devices.

        `max_rows` is the largest batch the devices have memory for; each device has a row all the same.
        """
        devices = sharding.num_devices
        num_batches = -(-num_samples // max(max_rows // devices * devices, devices))
        return cls(num_samples, num_batches, -(-num_samples // (num_batches * devices)) * devices, sharding)

    def own_numbers(self) -> np.ndarray:
        """Returns which samples this process's rows hold, batch after batch, int64 [rows].

        Numbers from `num_samples` on are of rows that do not count.
        """
        first, stop = process_rows(self.sharding, self.batch_size)
        return (np.arange(self.num_batches)[:, None] * self.batch_size + np.arange(first, stop)).ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out samples of this process's rows, batch after batch. Axis `r`: rows of all batches.

    A row that does not count repeats another sample, so that shapes never change.
    """

    batching: Batching
    numbers: np.ndarray
    """int32 [r]: which held-out sample, whatever the batches."""
    is_counted: np.ndarray
    """bool [r]: false for rows that fill up the last batch and for samples that could not be read."""
    fields: dict[Path, np.ndarray]
    """Of the batches, [r, ...]."""
    raw_state: np.ndarray
    """float32 [r, s], in the state's units."""
    actions: np.ndarray
    """float32 [r, ah, a], as recorded: in the robot's units, absolute."""
    step_mask: np.ndarray
    """bool [r, ah]: steps before the episode's end, of rows that count."""
    prompts: tuple[str, ...]
    episodes: np.ndarray
    """int64 [r]: the data set's numbers."""
    frames: np.ndarray
    """int64 [r]: in the episode."""
    outputs: tuple[Transform, ...]
    """Of each source: normalised chunks to the robot's units."""

    def rows(self, batch: int) -> slice:
        """Returns which of this process's rows are those of a batch."""
        size = len(self.numbers) // self.batching.num_batches
        return slice(batch * size, (batch + 1) * size)

    def batch(self, batch: int) -> tuple[Batch, jax.Array]:
        """Returns a batch on the mesh, and which samples it holds, int32 [b]."""
        rows, batching = self.rows(batch), self.batching
        fields = nest({path: array[rows] for path, array in self.fields.items()})
        numbers = jax.make_array_from_process_local_data(batching.sharding, self.numbers[rows], (batching.batch_size,))
        return place_batch(fields, batching.sharding, batching.batch_size), numbers

    def in_units(self, batch: int, chunks: np.ndarray) -> np.ndarray:
        """Returns sampled chunks of this process's rows of a batch as the robot would execute them: [rows, ah, a].

        Args:
            batch: counted from 0.
            chunks: what the model gave, normalised, [rows, ah, ad].
        """
        rows = self.rows(batch)
        actions = np.empty((len(chunks), *self.actions.shape[1:]), np.float32)
        sources = self.fields["source",][rows]
        for source in np.unique(sources).tolist():
            of = sources == source
            given = {"actions": chunks[of], "raw_state": self.raw_state[rows][of]}
            actions[of] = self.outputs[source](given)["actions"]
        return actions


def open_held_out(data: TrainingData, config: TrainConfig, sharding: jax.sharding.Sharding) -> HeldOut | None:
    """Returns `config.validation_samples` held-out samples, read and decoded; None where nothing is held out.

    Which samples they are depends on data, splits, weights and that number alone: not on seed, devices or processes.

    Args:
        data: of the run.
        config: of the run; a batch has at most its batch size, divided by its microbatches.
        sharding: of a batch's first axis.

    Raises:
        BadSampleError: a sample cannot be read, and the config does not skip such.
        ValueError: a held-out episode has no prompt of the source's level, or one that is too long.
    """
    held_out = [None if each.demonstrations is None else each.demonstrations.validation for each in data.sources]
    starts = [np.zeros(1, np.int64) if index is None else index.starts for index in held_out]
    places = choose(starts, data.mixture.shares.tolist(), config.validation_samples)
    if not places:
        logger.warning(
            "nothing is held out, so nothing will be validated: the data are random numbers, or every task has a "
            "single episode, or --data.validation-episodes is empty; choose more episodes, name some there, or give "
            "--validation-interval 0"
        )
        return None
    start = time.perf_counter()
    microbatches = 1 if config.microbatches == "auto" else config.microbatches
    batching = Batching.of(len(places), config.batch_size // microbatches, sharding)
    datasets = {number: _dataset(data.sources[number], config) for number in sorted({place.source for place in places})}
    numbers = batching.own_numbers()
    samples = _read(data, datasets, [places[n % len(places)] for n in numbers.tolist()], config)
    is_counted = (numbers < len(places)) & np.asarray([sample is not None for sample in samples])
    held = _stacked(samples, batching, numbers, is_counted, _outputs(data, config))
    logger.info(
        "validation: %d samples of %d held-out episodes, %d a batch; %.2f GB and %.1f s on this process",
        *(len(places), len({place[:2] for place in places}), batching.batch_size),
        *(sum(array.nbytes for array in held.fields.values()) / 1e9, time.perf_counter() - start),
    )
    return held


def _dataset(source: OpenedSource, config: TrainConfig) -> B1kDataset:
    """Returns the frames of a source's held-out episodes, each decoded by itself."""
    found = source.demonstrations
    if found is None:
        raise ValueError(f"source {source.config.name!r} has no demonstrations, so it holds out none")
    index = found.validation
    return B1kDataset(
        index,
        Columns(index, source.robot),
        EpisodeFrames(index, config.model.image_size),
        found.annotations.skills.of(index),
        open_prompts(index, source.config.prompt_level, found.annotations),
        config.model.action_horizon,
    )


def _outputs(data: TrainingData, config: TrainConfig) -> tuple[Transform, ...]:
    return tuple(
        output_pipeline(source.config.transforms, config.model, source.robot, stats)
        for source, stats in zip(data.sources, data.statistics, strict=True)
    )


def _read(
    data: TrainingData, datasets: dict[int, B1kDataset], places: Sequence[Place], config: TrainConfig
) -> list[Sample | None]:
    """Returns the model samples at `places` and what is kept of the raw ones; None for one that is skipped."""

    def read(place: Place) -> Sample | None:
        try:
            raw = datasets[place.source][place.index]
        except BadSampleError as error:
            if config.data.on_bad_sample != "skip":
                raise
            logger.warning("left out of the held-out samples: %s", error)
            return None
        sample = data.mixture.sources[place.source].pipeline(raw)
        kept = {name: raw[name] for name in ("is_pad", "prompt", "episode", "frame")}
        own = {"source": np.asarray(place.source, np.int32), "raw_actions": raw["actions"]}
        return sample | own | kept

    with concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, places))


def _stacked(
    samples: Sequence[Sample | None],
    batching: Batching,
    numbers: np.ndarray,
    is_counted: np.ndarray,
    outputs: tuple[Transform, ...],
) -> HeldOut:
    """Returns samples by row; a good one stands for one that could not be read.

    Raises:
        BadSampleError: none could be read.
    """
    good = [sample for sample in samples if sample is not None]
    if not good:
        raise BadSampleError(
            f"none of this process's {len(samples)} held-out samples could be read; run scripts/audit_dataset.py on "
            "the data, or give --validation-interval 0"
        )
    rows = [good[n % len(good)] if sample is None else sample for n, sample in enumerate(samples)]

    def column(name: str) -> np.ndarray:
        return np.stack([row[name] for row in rows])

    arrays = [flatten(row) for row in rows]
    return HeldOut(
        batching=batching,
        numbers=numbers.astype(np.int32),
        is_counted=is_counted,
        fields={path: np.stack([row[path] for row in arrays]) for path in arrays[0]},
        raw_state=column("raw_state"),
        actions=column("raw_actions"),
        step_mask=~column("is_pad") & is_counted[:, None],
        prompts=tuple(row["prompt"] for row in rows),
        episodes=column("episode"),
        frames=column("frame"),
        outputs=outputs,
    )
