"""A trace of a few steps, for `--profile`: what the devices and the host do, and when."""

import logging
import pathlib

import jax

from openpi_b1k.training.step import Metrics

logger = logging.getLogger(__name__)

STEPS_BEFORE = 2
"""The first step compiles, and the second may still be settling."""
STEPS_TRACED = 3


class Trace:
    """Records steps 3 to 5 of a run, counted from where it starts or resumes, into `<run>/profile`."""

    def __init__(self, run: pathlib.Path, completed_steps: int, *, is_wanted: bool) -> None:
        """Does nothing at all unless it is wanted; process 0 is the one to want it."""
        self._directory = run / "profile"
        self._begins_after = completed_steps + STEPS_BEFORE if is_wanted else None
        self._is_running = False

    def advance(self, step: int, metrics: Metrics) -> None:
        """Begins or ends recording after update number `step`, whose metrics are waited for then."""
        if self._begins_after is None:
            return
        if step == self._begins_after:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._directory))
            self._is_running = True
        elif self._is_running and step == self._begins_after + STEPS_TRACED:
            jax.block_until_ready(metrics)
            self._stop()

    def close(self) -> None:
        """Keeps what has been recorded of a run that ended early; warns if it ended before there was anything."""
        if self._is_running:
            self._stop()
        elif self._begins_after is not None:
            logger.warning("no trace was made: it begins after %d steps, and the run ended before", STEPS_BEFORE)

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_running = False
        self._begins_after = None
        logger.info("trace of a few steps: %s; look at it with `uvx xprof --logdir %s`", *[self._directory] * 2)
