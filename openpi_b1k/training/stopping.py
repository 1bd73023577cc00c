"""Stopping a run on request without losing what it has learned."""

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST_S = 1.0
"""Seconds in which a further signal is the same request: a launcher passes one on that the system sent to both."""


class InterruptedTraining(RuntimeError):  # noqa: N818 - the run is fine; it was told to stop
    """The run was told to stop and has saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        """`message` says how to continue; `signal_number` is what stopped the run."""
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """While entered, the first SIGINT or SIGTERM asks the run to stop after a step; a second one ends it at once.

    With several processes, a signal to any of them stops all after the same step, by JAX's preemption service, which
    takes SIGTERM for itself: only SIGKILL ends such a run sooner.
    """

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.signal_number = 0
        self._asked_at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Listens."""
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            numbers = SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
            self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Puts the former handlers back."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_number and now - self._asked_at < SAME_REQUEST_S:
            return
        if self.signal_number:
            self._restore()
            signal.raise_signal(number)
            return
        self.signal_number, self._asked_at = number, now
        logger.warning("%s: saving and stopping after this step; once more stops at once", signal.Signals(number).name)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._previous = {}

    def is_agreed(self, step: int) -> bool:
        """Returns whether to stop after `step`, the same on every process; call it once for each step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal_number = self.signal_number or signal.SIGTERM
            return True
        return jax.process_count() == 1 and self.signal_number != 0
