"""Batches on the mesh, made ahead by a thread or by worker processes. The step alone decides what a batch holds."""

import collections
import concurrent.futures
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.batch_memory import OwnBlocks
from openpi_b1k.data.batches import Share, Shares
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.data.workers import Workers
from openpi_b1k.observation import Batch, Observation

logger = logging.getLogger(__name__)

MAX_MESSAGES = 10
"""Replaced samples of a batch that are logged one by one."""
_Made = tuple[Batch, list[Share]]
"""A batch, and what the workers say of it."""


class Loader:
    """An endless iterator of batches from `start_step` on; the same ones for any number of workers and processes.

    Use it in a `with` statement, or call `close`: either ends threads and worker processes. An error in a worker is
    raised by the `next` whose batch it spoiled.
    """

    data_wait_s: float = 0.0
    """Seconds the last `next` had to wait for data."""
    skipped_samples: int = 0
    """Samples of the last batch, of this process's rows, that could not be read and were replaced."""

    def __init__(
        self, mixture: Mixture, config: TrainConfig, sharding: jax.sharding.Sharding, start_step: int = 0
    ) -> None:
        """Starts making batches.

        Args:
            mixture: samples by position; each worker process gets a copy.
            config: decides batch size, workers, prefetching and what happens to bad samples.
            sharding: of a batch's first axis; each process makes the rows its own devices hold.
            start_step: step of the first batch.

        Raises:
            ValueError: the devices cannot share a batch, or this process's rows are not in one piece.
        """
        self._sharding = sharding
        self._batch_size = config.batch_size
        num_workers = config.data.num_workers
        rows = Rows(config.batch_size, *process_rows(sharding, config.batch_size), max(num_workers, 1))
        self._shares = Shares(mixture, rows, is_skipping=config.data.on_bad_sample == "skip")
        self._workers = Workers(self._shares, start_step, config.data.prefetch) if num_workers else None
        self._blocks = OwnBlocks()
        self._step = start_step
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ready: collections.deque[concurrent.futures.Future[_Made]] = collections.deque()
        self._is_closed = False
        for _ in range(config.data.prefetch):
            self._ready.append(self._thread.submit(self._make))

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch, and asks for another to be made meanwhile.

        Raises:
            BadSampleError: a sample of it cannot be read.
            WorkerError: a worker process has been killed.
            RuntimeError: the loader is closed.
        """
        if self._is_closed:
            raise RuntimeError("this loader is closed, by close() or after an error; make a new one")
        start = time.perf_counter()
        try:
            batch, shares = self._ready.popleft().result()
        except BaseException:  # a KeyboardInterrupt too: what is under way must not keep the process alive
            self.close()
            raise
        self.data_wait_s = time.perf_counter() - start
        self._ready.append(self._thread.submit(self._make))
        self.skipped_samples = sum(share.skipped for share in shares)
        _log_skipped([message for share in shares for message in share.messages])
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
        if self._workers is not None:
            self._workers.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ready.clear()
        if self._workers is not None:
            self._workers.close()

    def _make(self) -> _Made:
        step, self._step = self._step, self._step + 1
        maker = self._shares.batch if self._workers is None else self._workers.take
        fields, shares = maker(step, self._blocks)
        return place_batch(fields, self._sharding, self._batch_size), shares


def place_batch(fields: dict[str, Any], sharding: jax.sharding.Sharding, batch_size: int) -> Batch:
    """Returns a batch on the mesh, of which `fields` are this process's rows, images and masks by camera."""

    def place(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    placed = jax.tree.map(place, fields)
    rest = {name: placed.pop(name) for name in ("actions", "action_mask", "source")}
    return Batch(Observation(**placed), **rest)


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


def _log_skipped(messages: list[str]) -> None:
    for message in messages[:MAX_MESSAGES]:
        logger.warning("skipped: %s", message)
    if len(messages) > MAX_MESSAGES:
        logger.warning("skipped: %d more for this batch", len(messages) - MAX_MESSAGES)
