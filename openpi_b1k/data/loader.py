"""Batches on the mesh, made ahead by a thread or by worker processes. The step alone decides what a batch holds."""

import collections
import concurrent.futures
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.batches import Shares, ignore_interrupts, join
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.observation import Batch, Observation

logger = logging.getLogger(__name__)

MAX_MESSAGES = 10
"""Replaced samples of a batch that are logged one by one."""
_Made = tuple[Batch, int, list[str]]
"""A batch, how many of its samples were replaced, and what was wrong with those."""


class WorkerError(RuntimeError):
    """A worker process is gone."""


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
        self._rows = Rows(config.batch_size, *process_rows(sharding, config.batch_size), max(num_workers, 1))
        shares = Shares(mixture, self._rows, is_skipping=config.data.on_bad_sample == "skip")
        self._shares = _made(shares, start_step, num_workers, config.data.prefetch)
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
            batch, skipped, messages = self._ready.popleft().result()
        except BaseException:  # a KeyboardInterrupt too: what is under way must not keep the process alive
            self.close()
            raise
        self.data_wait_s = time.perf_counter() - start
        self._ready.append(self._thread.submit(self._make))
        self.skipped_samples = skipped
        _log_skipped(messages)
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
        if isinstance(self._shares, grain.DatasetIterator):
            self._shares.close()
        self._shares = iter(())  # grain's iterator complains if it lives on to the interpreter's end

    def _make(self) -> _Made:
        workers = range(self._rows.num_workers)
        shares = [_taken(self._shares) for _ in workers]
        rows = [self._rows.share(self._step, worker)[0] for worker in workers]
        self._step += 1
        batch = self._place(join([share["fields"] for share in shares], rows))
        messages = [message for share in shares for message in share["messages"]]
        return batch, sum(share["skipped"] for share in shares), messages

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


def _made(shares: Shares, start_step: int, num_workers: int, prefetch: int) -> Iterator[dict[str, Any]]:
    """Returns the shares from `start_step` on, made here or by worker processes.

    Of the elements that follow, grain gives every num_workers-th to the same process, in order: share i of a step is
    always made by process i, which has its own copy of the data sets and their open decoders.
    """
    if num_workers == 0:
        return map(shares.__getitem__, range(start_step, len(shares)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for its flags, which only absl's own `app.run` would parse
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    in_worker = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    following = grain.MapDataset.source(shares).slice(slice(start_step * num_workers, None))
    return iter(following.to_iter_dataset(in_worker).mp_prefetch(options, worker_init_fn=ignore_interrupts))


def _taken(shares: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Returns the next share; a worker that is gone is explained."""
    try:
        return next(shares)
    except RuntimeError as error:
        if "was terminated unexpectedly" not in str(error):  # grain's words for it
            raise
        raise WorkerError(
            f"a worker process of the loader was killed: {error} Most often memory, or /dev/shm, ran out: lower "
            "--data.num-workers, --data.prefetch, --data.window-gb or --data.frame-cache-gib, and go on with --resume"
        ) from error


def _log_skipped(messages: list[str]) -> None:
    for message in messages[:MAX_MESSAGES]:
        logger.warning("skipped: %s", message)
    if len(messages) > MAX_MESSAGES:
        logger.warning("skipped: %d more for this batch", len(messages) - MAX_MESSAGES)
