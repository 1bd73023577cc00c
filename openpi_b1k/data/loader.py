"""Batches on the mesh, made ahead by a thread or by worker processes. The step alone decides what a batch holds."""

import collections
import concurrent.futures
import itertools
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.batches import BatchSource, Dataset, ignore_interrupts
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.transforms.base import Transform


class Loader:
    """An endless iterator of batches from `start_step` on; the same ones for any number of workers.

    Use it in a `with` statement, or call `close`: either ends threads and worker processes. An error in a worker is
    raised by the `next` whose batch it spoiled.
    """

    data_wait_s: float = 0.0
    """Seconds the last `next` had to wait for data."""

    def __init__(
        self,
        dataset: Dataset,
        pipeline: Transform,
        config: TrainConfig,
        sharding: jax.sharding.Sharding,
        start_step: int = 0,
    ) -> None:
        """Starts making batches.

        Args:
            dataset: raw samples by number.
            pipeline: raw sample -> model sample.
            config: decides batch size, seed, workers and prefetching.
            sharding: of a batch's first axis; each process makes the rows its own devices hold.
            start_step: step of the first batch.

        Raises:
            ValueError: the data set is empty, or this process's rows are not in one piece.
        """
        if not len(dataset):
            raise ValueError("the data set has no samples; see --data.tasks")
        self._sharding = sharding
        self._batch_size = config.batch_size
        first, stop = process_rows(sharding, config.batch_size)
        source = BatchSource(dataset, pipeline, config.seed, config.batch_size, first, stop)
        self._batches = _batches(source, start_step, config.data.num_workers, config.data.prefetch)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ready: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
        self._is_closed = False
        for _ in range(config.data.prefetch):
            self._ready.append(self._thread.submit(self._make))

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch, and asks for another to be made meanwhile.

        Raises:
            RuntimeError: the loader is closed.
        """
        if self._is_closed:
            raise RuntimeError("this loader is closed, by close() or after an error; make a new one")
        start = time.perf_counter()
        try:
            batch = self._ready.popleft().result()
        except BaseException:  # a KeyboardInterrupt too: what is under way must not keep the process alive
            self.close()
            raise
        self.data_wait_s = time.perf_counter() - start
        self._ready.append(self._thread.submit(self._make))
        return batch

    def __enter__(self) -> "Loader":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the loader."""
        self.close()

    def close(self) -> None:
        """Ends the thread and the worker processes; batches already returned stay valid."""
        if self._is_closed:
            return
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ready.clear()
        if isinstance(self._batches, grain.DatasetIterator):
            self._batches.close()
        self._batches = iter(())  # grain's iterator complains if it lives on to the interpreter's end

    def _make(self) -> Batch:
        return self._place(next(self._batches))

    def _place(self, fields: dict[str, Any]) -> Batch:
        def place(rows: np.ndarray) -> jax.Array:
            shape = (self._batch_size, *rows.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding, rows, shape)

        placed = jax.tree.map(place, fields)
        actions, action_mask = placed.pop("actions"), placed.pop("action_mask")
        return Batch(Observation(**placed), actions, action_mask)


def process_rows(sharding: jax.sharding.Sharding, batch_size: int) -> tuple[int, int]:
    """Returns (first, end) of the batch's rows that this process's devices hold.

    Raises:
        ValueError: the devices cannot share the batch evenly, or this process's rows are not in one piece.
    """
    num_shares = sharding.num_devices // sharding.shard_shape((sharding.num_devices,))[0]
    if batch_size % num_shares:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {num_shares} devices that share a batch")
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = sorted({index[0].indices(batch_size)[:2] for index in indices if index is not None})
    if any(end != start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise ValueError(f"a process's devices must hold neighbouring rows of the batch; this one's hold {spans}")
    return spans[0][0], spans[-1][1]


def _batches(source: BatchSource, start_step: int, num_workers: int, prefetch: int) -> Iterator[dict[str, Any]]:
    """Returns the batches from `start_step` on, made here or by worker processes."""
    if num_workers == 0:
        return map(source.__getitem__, range(start_step, len(source)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for its flags, which only absl's own `app.run` would parse
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    in_worker = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    steps = grain.MapDataset.source(source).slice(slice(start_step, None))
    return iter(steps.to_iter_dataset(in_worker).mp_prefetch(options, worker_init_fn=ignore_interrupts))
