"""Worker processes that write the rows of batches into shared memory. Must not need jax.

Each step has a block of that memory, and each worker its own rows in it, so that nothing is put together afterwards.
The process that trains sends every worker the numbers of the steps that have a free block, over a pipe; a worker
answers when its rows of a step are written. Whoever ends closes its pipe, which tells the other side.
Why not grain, whose worker processes did this before: docs/data.md, "What a sample costs".
"""

import atexit
import contextlib
import functools
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from openpi_b1k.data.batch_memory import OwnBlocks, SharedBlocks
from openpi_b1k.data.batches import Share, Shares, nest

PASSED_ON = (ValueError, OSError, LookupError)
"""Errors of a worker that are raised where the batch is asked for; another one ends the worker with a traceback."""
ENDING_S = 10.0
"""Until a worker that has closed its pipe has an exit code."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a run to stop."""


class WorkerError(RuntimeError):
    """A worker process is gone."""


class Workers:
    """The workers of this process, which make batches from a step on, some ahead of those that are taken."""

    def __init__(self, shares: Shares, start_step: int, ahead: int) -> None:
        """Starts them.

        Args:
            shares: what they make; each gets a copy, and with it decoders of its own.
            start_step: step of the first batch.
            ahead: how many batches may be ready and not taken.
        """
        context = multiprocessing.get_context("spawn")
        self._shares: Shares | None = shares
        self._start_step = start_step
        self._num_blocks = ahead + 1  # the one that is being taken is none of them
        self._blocks = SharedBlocks(self._num_blocks)
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(shares.rows.num_workers):
            ours, theirs = context.Pipe()
            arguments = (number, theirs, self._blocks)
            process = context.Process(target=work, args=arguments, name=f"loader worker {number}", daemon=True)
            with _blocked(STOPPING):
                process.start()
            theirs.close()  # or its end would not be noticed
            self._ends.append(ours)
            self._processes.append(process)
        # Before Python's own exit handler, which would wait for ever for workers that are deaf to SIGTERM.
        atexit.register(self.stop)

    def take(self, step: int, blocks: OwnBlocks) -> tuple[dict[str, Any], list[Share]]:
        """Returns the rows of a step, copied to a block: fields [b, ...]; and lets a further step begin.

        Steps must be taken one after the other.

        Raises:
            BadSampleError: a sample cannot be read and is not skipped.
            ValueError: samples have different fields, shapes or types.
            WorkerError: a worker is gone.
        """
        if self._shares is not None:
            self._send_shares()
        answers = [self._answer(worker) for worker in range(len(self._ends))]
        for error in answers:
            if isinstance(error, Exception):
                raise error
        shares = [answer for answer in answers if isinstance(answer, Share)]
        layouts = [share.layout for share in shares if share.layout is not None]
        for layout in layouts:
            self._blocks.views(layout, step)  # the same for all
        block = blocks.block(layouts[0].nbytes)
        block[:] = self._blocks.block(step)
        self._ask(step + self._num_blocks)
        return nest(layouts[0].views(block)), shares

    def _send_shares(self) -> None:
        """Tells the workers what to do, which waits for them to have started; they start side by side."""
        pickled = pickle.dumps(self._shares)
        self._shares = None
        for end in self._ends:
            with contextlib.suppress(OSError):  # one that is gone is noticed when its answer is read
                end.send_bytes(pickled)
        for step in range(self._start_step, self._start_step + self._num_blocks):
            self._ask(step)

    def _ask(self, step: int) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.send(step)

    def _answer(self, worker: int) -> Share | Exception:
        try:
            return self._ends[worker].recv()
        except (EOFError, OSError) as error:
            process = self._processes[worker]
            process.join(ENDING_S)
            if process.exitcode is not None and process.exitcode < 0:
                raise WorkerError(
                    f"a worker process of the loader was killed: {process.name} has exit code {process.exitcode}. Most "
                    "often memory ran out: lower --data.num-workers, --data.prefetch, --data.window-gb or "
                    "--data.frame-cache-gib, and go on with --resume"
                ) from error
            raise WorkerError(
                f"a worker process of the loader failed: {process.name} has exit code {process.exitcode}; what it "
                "said is above"
            ) from error

    def stop(self) -> None:
        """Ends the workers at once; a `take` under way in another thread raises WorkerError."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """Waits until they have ended, and gives the memory back; no `take` may be under way."""
        self.stop()
        atexit.unregister(self.stop)
        for process, end in zip(self._processes, self._ends, strict=True):
            process.join()
            end.close()
        self._blocks.close()


@contextlib.contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Blocks signals for this thread; a process that is started meanwhile never gets them."""
    resource_tracker.ensure_running()  # or the first process started would start it, and that unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(worker: int, end: Connection, blocks: SharedBlocks) -> None:
    """Makes a worker's rows of the steps it is asked for, until nobody asks any more.

    It is started deaf to what may be sent to every process of a run, Ctrl-C by a terminal and SIGTERM by Slurm: the
    process that trains still needs batches, as it finishes its step and saves.
    """
    with contextlib.suppress(EOFError, ConnectionError):
        shares: Shares = pickle.loads(end.recv_bytes())
        while True:
            step = end.recv()
            try:
                answer = shares.fill(step, worker, functools.partial(blocks.views, number=step))
            except PASSED_ON as error:
                error.add_note(f"In {multiprocessing.current_process().name}:\n{traceback.format_exc()}")
                answer = error
            end.send(answer)
