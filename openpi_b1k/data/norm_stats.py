"""The statistics a run normalises with: computed from exactly what Normalize will see, or those it is told to use.

`statistics/` counts; here is decided which: of the data (each source's own, or pooled over a mixture by weight), of the
checkpoint whose weights are loaded, or of a file.
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence

from openpi_b1k import paths
from openpi_b1k.config.data import TransformConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.shards import Shard, parse_shard
from openpi_b1k.data.statistics import store
from openpi_b1k.data.statistics.compute import of_shard, summarise
from openpi_b1k.data.statistics.report import described
from openpi_b1k.data.statistics.summary import Summary, pooled
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.normalize import NormStats

logger = logging.getLogger(__name__)

FILE_NAME = "norm_stats.json"
PARAMS = "params"


@dataclasses.dataclass(frozen=True, eq=False)
class StatsSource:
    """One source of a mixture, opened."""

    index: EpisodeIndex
    """The training split, trimmed."""
    columns: Columns
    transforms: TransformConfig
    robot: Robot
    """With the state layout of `transforms`."""
    weight: float = 1.0

    def place(self, action_horizon: int) -> store.Place:
        """Returns where the statistics are kept."""
        return store.place(self.index, self.transforms, action_horizon)


def load_or_compute(source: StatsSource, action_horizon: int) -> tuple[NormStats, pathlib.Path]:
    """Returns the statistics of a data set and where they are kept: computed the first time, read afterwards."""
    where = source.place(action_horizon)
    if where.json.is_file():
        logger.info("norm stats: %s", where.json)
        return NormStats.from_json(where.json.read_text()), where.json
    return keep(where, load_or_summarise(source, action_horizon)), where.json


def load_or_summarise(source: StatsSource, action_horizon: int) -> Summary:
    """Returns the summary that the statistics of a data set are made from, as `load_or_compute` does."""
    where = source.place(action_horizon)
    with paths.locked(where.directory / f"{where.name}.lock"):  # the first of several processes computes
        if where.summary.is_file():
            return Summary.load(where.summary)
        logger.info("norm stats: computing from %d frames, to be kept in %s", len(source.index), where.json)
        summary = summarise(source.index, source.robot, source.transforms, action_horizon)
        summary.save(where.summary)
    return summary


def write_part(source: StatsSource, action_horizon: int, shard: Shard) -> pathlib.Path:
    """Computes a shard's part of the statistics and returns where it is kept, for `merge_parts`."""
    path = source.place(action_horizon).part(shard)
    summarise(source.index, source.robot, source.transforms, action_horizon, shard).save(path)
    return path


def merge_parts(source: StatsSource, action_horizon: int) -> tuple[NormStats, pathlib.Path]:
    """Returns the statistics that all shards' parts make, and where they are kept.

    Raises:
        FileNotFoundError: a part is missing.
    """
    where = source.place(action_horizon)
    summary = where.merged()
    summary.save(where.summary)
    return keep(where, summary), where.json


def keep(where: store.Place, summary: Summary) -> NormStats:
    """Returns the statistics of a summary, and writes them."""
    stats = summary.result()
    store.write(where.json, stats.to_json())
    return stats


def load_or_pool(sources: Sequence[StatsSource], action_horizon: int) -> tuple[NormStats, pathlib.Path]:
    """Returns the statistics of a mixture, each source weighted by its share of the samples, and where they are kept.

    Raises:
        ValueError: the sources' transforms give numbers that cannot be put together.
    """
    for name in ("state_layout", "delta_fields", "per_step_norm"):
        values = [getattr(source.transforms, name) for source in sources]
        if len(set(values)) > 1:
            raise ValueError(
                f"the sources of the mixture differ in transforms.{name} ({', '.join(map(str, values))}), so their "
                "statistics cannot be pooled; give --data.norm-stats-of own"
            )
    weights = [source.weight for source in sources]
    where = store.mixture_place([source.place(action_horizon) for source in sources], weights)
    if where.json.is_file():
        logger.info("norm stats of the mixture: %s", where.json)
        return NormStats.from_json(where.json.read_text()), where.json
    summaries = [load_or_summarise(source, action_horizon) for source in sources]
    return keep(where, pooled(zip(summaries, weights, strict=True))), where.json


def choose(config: TrainConfig, sources: Sequence[StatsSource]) -> list[NormStats]:
    """Returns the statistics that each source is normalised with, in order; the log says where they are.

    Raises:
        FileNotFoundError: `config.norm_stats` says where they are, and they are not there.
        ValueError: several sets are there, or they do not fit the robot or the chunk.
    """
    horizon = config.model.action_horizon
    if config.norm_stats != "data":
        path = find_given(config)
        stats = NormStats.from_json(path.read_text())
        for source in sources:
            _check_fits(stats, path, source.robot, horizon)
        logger.info("norm stats: %s, as --norm-stats %s says", path, config.norm_stats)
        return [stats] * len(sources)
    if len(sources) > 1 and config.data.norm_stats_of == "pooled":
        return [load_or_pool(sources, horizon)[0]] * len(sources)
    return [load_or_compute(source, horizon)[0] for source in sources]


def find_given(config: TrainConfig) -> pathlib.Path:
    """Returns the norm_stats.json that `config.norm_stats` means: a checkpoint's, or that at a path or address.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, or the run has no weights whose statistics could be used.
    """
    if config.norm_stats == "checkpoint" and config.weights == "none":
        raise ValueError("--norm-stats checkpoint means those of --weights, which is none; give a path, or data")
    address = config.weights if config.norm_stats == "checkpoint" else config.norm_stats
    base = address.rstrip("/")
    if base.endswith(f"/{PARAMS}"):
        base = base.removesuffix(f"/{PARAMS}")
        address = f"{base}/assets"
    elif config.norm_stats == "checkpoint":
        address = f"{base}/assets"
    path = paths.fetch(address)
    if path.is_file():
        return path
    found = [path / FILE_NAME] if (path / FILE_NAME).is_file() else sorted(path.glob(f"**/{FILE_NAME}"))
    if not found:
        raise FileNotFoundError(f"no {FILE_NAME} in {path}; give its path with --norm-stats, or --norm-stats data")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ValueError(f"{path} has norm stats of several data sets: {listed}; give one of them with --norm-stats")
    return found[0]


def _check_fits(stats: NormStats, path: pathlib.Path, robot: Robot, action_horizon: int) -> None:
    try:
        shape = stats.for_robot(robot).actions.mean.shape
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(shape) > 1 and shape[0] != action_horizon:
        raise ValueError(
            f"{path} has statistics of {shape[0]} action steps; --model.action-horizon is {action_horizon}"
        )


def reports(
    sources: Sequence[StatsSource], action_horizon: int, shard: str | None, is_merging: bool, is_pooled: bool
) -> Iterator[str]:
    """Yields what there is to say of each source's statistics, and of the mixture's, as they are computed.

    Args:
        sources: at least one.
        action_horizon: actions per chunk.
        shard: I/N computes and keeps only that part; None the whole.
        is_merging: put together the parts that shards have computed.
        is_pooled: several sources share the statistics of their mixture.

    Raises:
        FileNotFoundError: parts are missing.
        ValueError: `shard` is not of the form I/N, or given with `is_merging`.
    """
    if shard is not None and is_merging:
        raise ValueError("--shard computes a part and --merge puts parts together; give one of them")
    for source in sources:
        start = time.perf_counter()
        if shard is not None:
            part = parse_shard(shard)
            path = write_part(source, action_horizon, part)
            yield f"{path}\n{_speed(len(of_shard(source.index, part)), start)}"
            continue
        stats, path = (merge_parts if is_merging else load_or_compute)(source, action_horizon)
        text = described(stats, source.robot, source.transforms.normalization)
        yield f"{text}\n{_speed(len(source.index), start)}\n{path}"
    if is_pooled and len(sources) > 1 and shard is None:
        stats, path = load_or_pool(sources, action_horizon)
        yield f"{described(stats, sources[0].robot, sources[0].transforms.normalization)}\nof the mixture\n{path}"


def _speed(frames: int, start: float) -> str:
    seconds = time.perf_counter() - start
    return f"{frames} frames in {seconds:.1f} s ({frames / seconds:.3g} frames/s; less where they were kept before)"
