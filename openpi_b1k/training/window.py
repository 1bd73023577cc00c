"""The metrics of the steps since the last line: fetched when a step is done, averaged when the line is due.

Updates whose loss or gradient is no number are skipped by the step; here they are noticed, counted and, after too many
in a row, turned into an error.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.layout import Layout
from openpi_b1k.training import memory
from openpi_b1k.training.step import Metrics

logger = logging.getLogger(__name__)

STEPS_IN_FLIGHT = 2
MAX_DATA_WAIT = 0.05
"""Share of the time spent waiting for data above which a warning says what to change."""
GROUP_NORM = "grad_norm/"

HostMetrics = Mapping[str, np.ndarray]


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient was no number for many updates in a row, so the run cannot go on."""

    def __init__(self, message: str, step: int, groups: tuple[str, ...], metrics: HostMetrics) -> None:
        """`step` is the last of the skipped updates, `groups` whose gradients were no numbers, `metrics` its own."""
        super().__init__(message)
        self.step = step
        self.groups = groups
        self.metrics = metrics


@dataclasses.dataclass(frozen=True)
class Compute:
    """What the share of the devices' peak (MFU) is calculated from."""

    flops_per_sample: float
    """Operations that the model needs for a sample, forward and backward; what is computed twice counts once."""
    peak_flops: float
    """Operations per second that one device can do at most."""


class Window:
    """Collects the metrics of steps without waiting for them, and limits how far dispatch runs ahead."""

    def __init__(self, config: TrainConfig, action: Layout, run: pathlib.Path, compute: Compute | None = None) -> None:
        """Starts empty; `action` names the dims whose losses are reported, `run` is the run's directory."""
        self._config = config
        self._action = action
        self._run = run
        self._compute = compute
        self._in_flight: list[tuple[int, Metrics]] = []
        self._done: list[HostMetrics] = []
        self._newest: HostMetrics = {}
        self._skipped_samples = 0
        self._skipped_updates = 0
        self._skipped_in_a_row = 0
        self._paused_s: dict[str, float] = {}
        self._is_compiled = False
        self._start_clock()

    def _start_clock(self) -> None:
        self._started_at = time.perf_counter()
        self._num_timed = 0
        self._data_wait_s = 0.0
        self._untimed_s = 0.0

    def add(self, step: int, metrics: Metrics, data_wait_s: float, skipped_samples: int = 0) -> None:
        """Adds what update number `step` measured, how long it waited for its batch and what was replaced in that.

        Returns when all but the last STEPS_IN_FLIGHT updates are done, so that batches do not pile up on the devices.
        The first update of the run, which includes compilation, is waited for and left out of the rates.

        Raises:
            NonFiniteLossError: `max_nonfinite_steps` updates in a row were skipped, the last at most STEPS_IN_FLIGHT
                before `step`.
        """
        self._in_flight.append((step, metrics))
        self._skipped_samples += skipped_samples
        if not self._is_compiled:
            self.check()
            logger.info("the first step took %.1f s, compilation included", time.perf_counter() - self._started_at)
            self._is_compiled = True
            self._start_clock()
            return
        self._num_timed += 1
        self._data_wait_s += data_wait_s
        self._fetch(leave=STEPS_IN_FLIGHT)

    def check(self) -> None:
        """Waits for every step of the window.

        Raises:
            NonFiniteLossError: `max_nonfinite_steps` updates in a row were skipped.
        """
        self._fetch(leave=0)

    def _fetch(self, leave: int) -> None:
        """Takes the metrics of all steps but the last `leave` from the devices, waiting for them."""
        while len(self._in_flight) > leave:
            step, metrics = self._in_flight.pop(0)
            fetched = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
            if fetched["is_finite"]:
                self._skipped_in_a_row = 0
                self._done.append(fetched)
                self._newest = fetched
            else:
                self._skip(step, fetched)

    def _skip(self, step: int, metrics: HostMetrics) -> None:
        """Counts an update that was skipped, warns of the first in a row and gives up at the last."""
        self._skipped_updates += 1
        self._skipped_in_a_row += 1
        groups = nonfinite_groups(metrics)
        if self._skipped_in_a_row == 1:
            logger.warning(
                "the update of step %d was skipped: loss %s, gradients that are no numbers in: %s",
                step,
                float(metrics["loss"]),
                ", ".join(groups) or "none",
            )
        if self._skipped_in_a_row >= self._config.max_nonfinite_steps:
            raise NonFiniteLossError(self._explain(step, groups, metrics), step, groups, metrics)

    def _explain(self, step: int, groups: tuple[str, ...], metrics: HostMetrics) -> str:
        return (
            f"{self._skipped_in_a_row} updates in a row were skipped, the last at step {step}, because loss or "
            f"gradient is no number (loss {float(metrics['loss'])}, gradients of {', '.join(groups) or 'no group'}); "
            f"checkpoints saved before are kept in {self._run}. Look at the first batch and the norm stats in the log "
            "(a dim that hardly varies, a wrong unit?), at grad_norm in metrics.jsonl before that step (if it grows, "
            "lower --schedule.peak-lr or --optimizer.clip-norm), and at the initial weights"
        )

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Leaves what happens inside out of the rates, and adds its seconds to `name` of the next line.

        Steps are waited for first, so that none of them runs inside: `with window.pause("checkpoint_stall_s"): save()`.
        """
        self.check()
        started_at = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started_at
            self._untimed_s += seconds
            self._paused_s[name] = self._paused_s.get(name, 0.0) + seconds

    def newest(self) -> dict[str, float]:
        """Returns loss and learning rate of the newest update known to be done, and the rates so far."""
        shown = {name: float(self._newest[name]) for name in ("loss", "learning_rate") if name in self._newest}
        return shown | self._rates()

    def close(self) -> dict[str, float]:
        """Returns the means over the window's updates and empties it; warns if it waited much for data.

        docs/training.md says what each key means. Skipped updates are counted (skipped_updates) and in no mean; a
        window of nothing but such has no means at all.

        Raises:
            NonFiniteLossError: as `check`.
        """
        self.check()
        rates = self._rates()
        _warn_of_waiting(rates.get("data_wait", 0.0))
        line = self._means() | rates | _memory() | self._paused_s
        line["skipped_samples"] = self._skipped_samples
        line["skipped_updates"] = self._skipped_updates
        line["unix_time"] = time.time()
        self._done, self._paused_s = [], {}
        self._skipped_samples = self._skipped_updates = 0
        self._start_clock()
        return {name: float(value) for name, value in line.items()}

    def _means(self) -> dict[str, float]:
        """Returns the means over the updates that were made, loss/<field> and loss/<source> among them."""
        if not self._done:
            return {}
        stacked = {name: np.stack([one[name] for one in self._done]) for name in self._done[0]}
        per_dim = stacked.pop("loss_per_dim").mean(axis=0)
        losses, counts = stacked.pop("source_loss"), stacked.pop("source_count")
        del stacked["is_finite"]
        means = {"loss": stacked.pop("loss").mean()}
        means |= {f"loss/{name}": per_dim[self._action.slice(name)].mean() for name in self._action.names}
        sources = self._config.data.sources
        if len(sources) > 1:
            means |= {
                f"loss/{source.name}": mean for source, mean in zip(sources, weighted(losses, counts), strict=True)
            }
        means |= {name: values.mean() for name, values in stacked.items()}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def _rates(self) -> dict[str, float]:
        """Returns how fast the window's steps were; nothing before a step has been timed."""
        if not self._num_timed:
            return {}
        elapsed = max(time.perf_counter() - self._started_at - self._untimed_s, 1e-9)
        per_device = self._num_timed * self._config.batch_size / elapsed / jax.device_count()
        rates = {
            "samples_per_s": per_device * jax.device_count(),
            "samples_per_s_per_device": per_device,
            "step_time_s": elapsed / self._num_timed,
            "data_wait": self._data_wait_s / elapsed,
        }
        if self._compute is not None:
            rates["mfu"] = per_device * self._compute.flops_per_sample / self._compute.peak_flops
        return rates


def nonfinite_groups(metrics: HostMetrics) -> tuple[str, ...]:
    """Returns the groups of parameters whose gradient norm is not finite."""
    norms = {name.removeprefix(GROUP_NORM): value for name, value in metrics.items() if name.startswith(GROUP_NORM)}
    return tuple(name for name, norm in norms.items() if not np.isfinite(norm))


def weighted(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the mean [S] of each column of `means` [steps, S], weighted by `counts`; nan where they are all 0."""
    sums = np.where(counts > 0, means * counts, 0.0).sum(axis=0)
    totals = counts.sum(axis=0)
    return np.where(totals > 0, sums / np.maximum(totals, 1), np.nan)


def _memory() -> dict[str, float]:
    """Returns the memory taken, as far as it is known."""
    known = {"device_memory_gb": memory.device_memory_gb(), "host_memory_gb": memory.host_memory_gb()}
    return {name: value for name, value in known.items() if value is not None}


def _warn_of_waiting(data_wait: float) -> None:
    if data_wait > MAX_DATA_WAIT:
        logger.warning(
            "%.0f %% of the time since the last line was spent waiting for data: raise --data.num-workers (this "
            "machine has %d cores), give --data.frame-cache-gib if the data fit into memory, or re-encode them at the "
            "model's size with scripts/prepare_dataset.py",
            100 * data_wait,
            os.cpu_count() or 1,
        )
