"""Stopping a run on request without losing what it has learned."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedTraining(RuntimeError):  # noqa: N818 - the run is fine; it was told to stop
    """The run was told to stop and has saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        """`message` says how to continue; `signal_number` is what stopped the run."""
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """While entered, the first SIGINT or SIGTERM asks the run to stop after a step; a second one ends it at once."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.signal_number = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Listens."""
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Puts the former handlers back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        logger.warning("%s: saving and stopping after this step; once more stops at once", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._previous = {}

    def is_agreed(self, *, is_sync_point: bool) -> bool:
        """Returns whether to stop now, the same on every process.

        Args:
            is_sync_point: whether processes may wait for each other here. With several processes, which may be told to
                stop at different steps, the answer is no elsewhere.
        """
        if jax.process_count() == 1:
            return self.signal_number != 0
        if not is_sync_point:
            return False
        numbers = np.asarray(multihost_utils.process_allgather(np.int32(self.signal_number)))
        self.signal_number = int(numbers.max())
        return self.signal_number != 0
