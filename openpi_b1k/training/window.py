"""The metrics of the steps since the last line: kept on the devices, fetched when the line is due."""

import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np

from openpi_b1k.robots.layout import Layout
from openpi_b1k.training.step import Metrics

logger = logging.getLogger(__name__)

STEPS_IN_FLIGHT = 2
MAX_DATA_WAIT = 0.05
"""Share of the time spent waiting for data above which a warning says what to change."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is not a number, so the run cannot go on."""


class Window:
    """Collects the metrics of steps without waiting for them, and limits how far dispatch runs ahead."""

    def __init__(self, batch_size: int, action: Layout, run: pathlib.Path) -> None:
        """Starts empty; `action` names the dims whose losses are reported, `run` is the run's directory."""
        self._run = run
        self._batch_size = batch_size
        self._action = action
        self._measured: list[tuple[int, Metrics]] = []
        self._done: Metrics = {}
        self._skipped_samples = 0
        self._is_compiled = False
        self._start_clock()

    def _start_clock(self) -> None:
        self._started_at = time.perf_counter()
        self._num_timed = 0
        self._data_wait_s = 0.0

    def add(self, step: int, metrics: Metrics, data_wait_s: float, skipped_samples: int = 0) -> None:
        """Adds what update number `step` measured, how long it waited for its batch and what was replaced in that.

        Returns when all but the last STEPS_IN_FLIGHT updates are done, so that batches do not pile up on the devices.
        The first update of the run, which includes compilation, is waited for and left out of the rates.
        """
        self._measured.append((step, metrics))
        self._skipped_samples += skipped_samples
        if not self._is_compiled:
            self._done = jax.block_until_ready(metrics)
            logger.info("the first step took %.1f s, compilation included", time.perf_counter() - self._started_at)
            self._is_compiled = True
            self._start_clock()
            return
        self._num_timed += 1
        self._data_wait_s += data_wait_s
        if len(self._measured) > STEPS_IN_FLIGHT:
            self._done = jax.block_until_ready(self._measured[-1 - STEPS_IN_FLIGHT][1])

    def newest(self) -> dict[str, float]:
        """Returns loss and learning rate of the newest step known to be done, and the rates so far."""
        shown = {name: float(self._done[name]) for name in ("loss", "learning_rate") if name in self._done}
        return shown | self._rates()

    def check(self) -> None:
        """Waits for every step of the window.

        Raises:
            NonFiniteLossError: a loss or a gradient norm among them is not finite.
        """
        for step, metrics in self._measured:
            for name in ("loss", "grad_norm"):
                value = float(metrics[name])
                if not math.isfinite(value):
                    raise NonFiniteLossError(self._explain(name, value, step))

    def _explain(self, name: str, value: float, step: int) -> str:
        return (
            f"{name} is {value} at step {step}; checkpoints saved before are kept in {self._run}. Look at the first "
            "batch and the norm stats in the log (a dim that hardly varies, a wrong unit?), at grad_norm in "
            "metrics.jsonl before that step (if it grows, lower --schedule.peak-lr or --optimizer.clip-norm), and at "
            "the initial weights"
        )

    def close(self) -> Mapping[str, float]:
        """Returns the means over the window and empties it; warns if the window waited much for data.

        The keys: loss, loss/<action field> for each field, grad_norm, param_norm, learning_rate, samples_per_s,
        data_wait (the share of the time spent waiting for a batch), skipped_samples (bad ones that this process
        replaced), unix_time (seconds).

        Raises:
            NonFiniteLossError: as `check`.
        """
        self.check()
        fetched = jax.device_get([metrics for _, metrics in self._measured])
        means = {name: np.mean([metrics[name] for metrics in fetched], axis=0) for name in fetched[0]}
        per_dim = means.pop("loss_per_dim")
        loss = means.pop("loss")
        fields = {f"loss/{name}": per_dim[self._action.slice(name)].mean() for name in self._action.names}
        rates = self._rates()
        _warn_of_waiting(rates.get("data_wait", 0.0))
        counts = {"skipped_samples": self._skipped_samples}
        line = {"loss": loss, **fields, **means, **rates, **counts, "unix_time": time.time()}
        self._measured.clear()
        self._skipped_samples = 0
        self._start_clock()
        return {name: float(value) for name, value in line.items()}

    def _rates(self) -> dict[str, float]:
        """Returns samples per second and the share of time spent waiting; nothing before a step has been timed."""
        if not self._num_timed:
            return {}
        elapsed = time.perf_counter() - self._started_at
        return {
            "samples_per_s": self._num_timed * self._batch_size / elapsed,
            "data_wait": self._data_wait_s / elapsed,
        }


def _warn_of_waiting(data_wait: float) -> None:
    if data_wait > MAX_DATA_WAIT:
        logger.warning(
            "%.0f %% of the time since the last line was spent waiting for data: raise --data.num-workers (this "
            "machine has %d cores), give --data.frame-cache-gib if the data fit into memory, or re-encode them at the "
            "model's size with scripts/prepare_dataset.py",
            100 * data_wait,
            os.cpu_count() or 1,
        )
