"""How near the loader comes to the decoder's limit, on each kind of data: speed, mixing and memory.

Loader and ceiling take turns in one run, with as many processes, on the same sequence of frames, while the other
rests: whatever else the machine does hits both. A turn of the loader begins and ends with its buffers full, so that it
makes as many batches as are counted, though a few steps further on than the ceiling's.
"""

import dataclasses
import logging
import multiprocessing
import pathlib
import resource
import time
from multiprocessing.process import BaseProcess

import jax
import numpy as np

from openpi_b1k.benchmarks import videos
from openpi_b1k.benchmarks.ceiling import Ceiling
from openpi_b1k.benchmarks.mixing import mixedness
from openpi_b1k.benchmarks.settings import Settings
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.loader import Loader, process_rows
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.order.rows import Rows

logger = logging.getLogger(__name__)

REST_S = 0.5
"""With hardly any work of the workers, after which they have nothing left to do."""
IDLE_TICKS = 3
"""Hundredths of a second of processor time that waiting may take in that time."""
POLL_S = 0.02
MIXED_STEPS = 20
"""Batches whose mixing is looked at, from places all over the first epoch but its ends."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured on a kind of data."""

    kind: str
    samples_per_s_per_core: float
    """Median over the turns; a core is a worker's."""
    ceiling_per_s_per_core: float
    ratio_to_ceiling: float
    """Median over pairs of turns."""
    distinct_episodes: float
    """Mean per batch."""
    fewest_episodes: int
    neighbour_correlation: float
    """Mean share of a batch's samples with another of the same episode within a second."""
    memory_start_gb: float
    """Resident in all workers, mapped files included, when the turns begin."""
    memory_end_gb: float
    """After `samples`."""
    memory_peak_gb: float
    memory_mapped_gb: float
    """Of that at the end: mapped files, mostly libraries and columns, counted for each worker though they share them;
    the system takes this memory back when it needs it."""
    samples: int
    data_gb: float
    """On disk; files that episodes share counted once."""


def run_config(kind: videos.Kind, root: pathlib.Path, settings: Settings) -> TrainConfig:
    """Returns the run whose loader is measured: pi0.5's sizes and what training does unless told otherwise."""
    data = DataConfig(
        generation=kind.generation,
        root=str(root),
        transforms=TransformConfig(tokenizer=SAMPLE_TOKENIZER),
        num_workers=settings.num_workers,
        window_gb=settings.window_gb,
    )
    return TrainConfig(weights="none", model=ModelConfig(), data=data, batch_size=settings.batch_size)


def measure(kind: videos.Kind, settings: Settings, root: pathlib.Path | None = None) -> Row:
    """Returns the measurements on a kind of data, which is made first if it is not in the cache.

    Args:
        kind: of data.
        settings: of the measurement.
        root: where such data are; None for the cache.

    Raises:
        ValueError: the data hold no demonstrations.
    """
    root = root or videos.make(kind)
    config = run_config(kind, root, settings)
    data = open_training_data(config)
    found = data.sources[0].demonstrations
    if found is None:
        raise ValueError(f"{root} holds no demonstrations")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    rows = Rows(config.batch_size, *process_rows(sharding, config.batch_size), settings.num_workers)
    # Epochs begin and end with few spans open, so what is mixed is looked at in between.
    steps = np.linspace(0.1, 0.9, MIXED_STEPS) * (data.sources[0].order.num_samples // config.batch_size)
    mixed = mixedness(data.mixture, found.index, config.batch_size, steps.astype(int).tolist())
    with Ceiling(data.mixture, found.index, rows, config.model.image_size) as ceiling:
        before = set(multiprocessing.active_children())
        with Loader(data.mixture, config, sharding, settings.first_step) as loader:
            jax.block_until_ready(next(loader))  # until then, no worker need have started
            workers = Workers(set(multiprocessing.active_children()) - before)
            speeds, memory = _take_turns(loader, ceiling, workers, settings)
            samples = settings.batch_size * ((settings.turns + 1) * settings.steps_per_turn + 1)
            while samples < settings.memory_samples:
                jax.block_until_ready(next(loader))
                memory.append(workers.resident_bytes())
                samples += settings.batch_size
            mapped = workers.mapped_bytes()
    loader_speeds, ceiling_speeds = np.array(speeds).T
    row = Row(
        kind=kind.name,
        samples_per_s_per_core=float(np.median(loader_speeds)),
        ceiling_per_s_per_core=float(np.median(ceiling_speeds)),
        ratio_to_ceiling=float(np.median(loader_speeds / ceiling_speeds)),
        **dataclasses.asdict(mixed),
        memory_start_gb=memory[0] / 1e9,
        memory_end_gb=memory[-1] / 1e9,
        memory_peak_gb=max(memory) / 1e9,
        memory_mapped_gb=mapped / 1e9,
        samples=samples,
        data_gb=videos.data_bytes(root) / 1e9,
    )
    logger.info("%s", row)
    return row


class Workers:
    """The loader's processes, seen from outside."""

    def __init__(self, processes: set[BaseProcess]) -> None:
        """Looks at nothing yet.

        Raises:
            ValueError: there are none.
        """
        if not processes:
            raise ValueError("the loader has no worker processes")
        self._directories = [pathlib.Path("/proc") / str(process.pid) for process in processes]

    def resident_bytes(self) -> int:
        """Returns the resident memory of all, mapped files included."""
        pages = sum(int((path / "statm").read_text().split()[1]) for path in self._directories)
        return pages * resource.getpagesize()

    def mapped_bytes(self) -> int:
        """Returns the part of `resident_bytes` that is mapped files."""
        pages = sum(int((path / "statm").read_text().split()[2]) for path in self._directories)
        return pages * resource.getpagesize()

    def rest(self) -> float:
        """Waits until they have hardly worked for REST_S, and returns when they stopped, by `perf_counter`."""
        seen = [(time.perf_counter(), self._ticks())]
        while True:
            time.sleep(POLL_S)
            now, ticks = time.perf_counter(), self._ticks()
            seen.append((now, ticks))
            past = max((before for when, before in seen if when <= now - REST_S), default=None)
            if past is not None and ticks - past <= IDLE_TICKS:
                return next(when for when, before in seen if before >= ticks - IDLE_TICKS)

    def _ticks(self) -> int:
        """Returns the processor time all have used, in the kernel's ticks: user and system."""
        stats = [(path / "stat").read_text().rpartition(")")[2].split() for path in self._directories]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats)


def _take_turns(
    loader: Loader, ceiling: Ceiling, workers: Workers, settings: Settings
) -> tuple[list[tuple[float, float]], list[int]]:
    """Returns each turn's samples per second and core of (loader, ceiling), and the workers' memory before and after.

    The loader has made some steps ahead, so what it makes in a turn are steps further on than those it gives out; the
    ceiling takes the latter. Which of the two goes first changes from turn to turn.
    """
    count = settings.steps_per_turn
    samples = count * settings.batch_size / settings.num_workers

    def of_loader() -> float:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(next(loader))
        return workers.rest() - start

    workers.rest()
    speeds, memory = [], []
    for turn in range(settings.turns + 1):
        first = settings.first_step + 1 + turn * count
        steps = range(first, first + count)
        if turn % 2:
            seconds = of_loader()
            limit = ceiling.seconds(steps)
        else:
            limit = ceiling.seconds(steps)
            seconds = of_loader()
        memory.append(workers.resident_bytes())
        logger.info("turn %d: loader %.1f s, ceiling %.1f s", turn, seconds, limit)
        speeds.append((samples / seconds, samples / limit))
    return speeds[1:], memory
