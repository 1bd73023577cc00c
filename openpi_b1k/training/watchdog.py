"""Notices that a run stands still, says where, and ends it, as a process that waits for ever tells nobody.

A thread looks at how long ago the last step was finished. It needs no answer from the thread that trains, which may be
waiting for a device, another process or a file.
"""

import collections
import contextlib
import faulthandler
import logging
import os
import pathlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Self

logger = logging.getLogger(__name__)

LOST_STATUS = 75
"""Exit status of a run that hung, or whose other processes were lost: worth another try with --resume (EX_TEMPFAIL)."""
SLOW_FACTOR = 20
"""A step that takes this many times the median is worth a look at what it is doing."""
MIN_SLOW_S = 10.0
"""And no shorter one is, in seconds."""
RECENT_STEPS = 101
"""Steps that the median is of."""
MIN_STEPS = 5
"""Steps from which on there is a median to speak of."""
LOOK_S = 1.0
"""Seconds between looks."""


def end_process(message: str) -> NoReturn:
    """Ends this process at once, whatever its threads wait for, with status `LOST_STATUS`.

    What its threads are doing goes to stderr, and behind it, as the last line, `error: ` and the message. Nothing is
    saved or closed, and no exit handler runs: those of JAX wait for the other processes.
    """
    faulthandler.dump_traceback(2, all_threads=True)
    os.write(2, f"error: {message}\n".encode())
    os._exit(LOST_STATUS)


def stacks_path(directory: pathlib.Path, process: int) -> pathlib.Path:
    """Returns the file in a run's directory that a process's stacks are written to."""
    return directory / f"stacks-{process}.txt"


def dump_stacks(path: pathlib.Path, why: str) -> str:
    """Returns what every thread of this process is doing, and appends it to a file under a line that says `why`."""
    with open(os.memfd_create("stacks"), "w+b") as memory:  # the disk may be what hangs
        faulthandler.dump_traceback(memory, all_threads=True)
        memory.seek(0)
        stacks = memory.read().decode(errors="replace")
    try:
        with path.open("a") as file:
            file.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}: {why}\n{stacks}\n")
    except OSError as error:
        logger.warning("the stacks could not be written to %s: %s", path, error)
    return stacks


class Watchdog:
    """While entered, a thread watches how long steps take.

    A step that takes 20 times the median is slow: the stacks of all threads are logged, once for that step. After
    `hang_timeout_s` without a finished step, pauses apart, the process ends with an `error:` line and `LOST_STATUS`.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        hang_timeout_s: float,
        process: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """Watches from now on.

        Args:
            directory: the run's, which stacks are written to.
            hang_timeout_s: seconds without a finished step after which the process ends.
            process: this process's number, for messages and file names.
            clock: seconds of a clock that is never set.
            end: ends the process, saying why; default: `end_process`.
        """
        self._directory, self._hang_timeout_s, self._process = directory, hang_timeout_s, process
        self._clock, self._end = clock, end if end is not None else end_process
        self._lock = threading.Lock()
        self._durations: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)
        self._step: int | None = None
        self._started_at = clock()
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._is_logged = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread, and the clock of the first step."""
        with self._lock:
            self._restart()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def beat(self, step: int) -> None:
        """Takes note that `step` is finished and the next one begins."""
        with self._lock:
            if self._step is not None:  # the first one may have been waiting for anything
                self._durations.append(self._elapsed())
            self._step = step
            self._restart()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time spent inside out of account: compiling, saving, validation, each with limits of its own."""
        with self._lock:
            if self._paused_at is not None:
                raise RuntimeError("the watchdog is paused already; pauses do not nest")
            self._paused_at = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._paused_s += self._clock() - self._paused_at
                self._paused_at = None

    def check(self) -> None:
        """Looks at the present step: what the thread does every second."""
        with self._lock:
            elapsed, step = self._elapsed(), self._step
            limit = self._slow_limit()
            is_slow = elapsed > limit and not self._is_logged
            self._is_logged = self._is_logged or is_slow
        after = "before the first step" if step is None else f"after step {step}"
        where = f"on process {self._process} ({socket.gethostname()})"
        path = stacks_path(self._directory, self._process)
        if elapsed > self._hang_timeout_s:
            why = f"no step was finished for {elapsed:.0f} s {after} {where}"
            dump_stacks(path, why)
            self._end(
                f"{why}, longer than --hang-timeout-s {self._hang_timeout_s:g}; {path} says what its threads were "
                "doing. Go on from the last checkpoint with --resume"
            )
        elif is_slow:
            why = f"the step {after} {where} has taken {elapsed:.1f} s, {SLOW_FACTOR} times the median or more"
            logger.warning("%s; what its threads are doing:\n%s", why, dump_stacks(path, why))

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.check()

    def _restart(self) -> None:
        self._started_at, self._paused_s, self._is_logged = self._clock(), 0.0, False

    def _elapsed(self) -> float:
        """Returns the seconds of the present step, pauses apart."""
        now = self._clock() if self._paused_at is None else self._paused_at
        return now - self._started_at - self._paused_s

    def _slow_limit(self) -> float:
        if len(self._durations) < MIN_STEPS:
            return float("inf")
        return max(SLOW_FACTOR * statistics.median(self._durations), MIN_SLOW_S)
