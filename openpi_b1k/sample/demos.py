"""Makes the sample world's demonstrations in the user's cache, once, in the format of either generation."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import TypeVar

import tqdm

from openpi_b1k import paths
from openpi_b1k.config.data import Generation, Modality, SourceConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import PROPRIO
from openpi_b1k.sample import write_2025, write_2026
from openpi_b1k.sample.recording import goals_by_demo, record
from openpi_b1k.sample.world import Goal

logger = logging.getLogger(__name__)

WRITERS = {"2025": write_2025, "2026": write_2026}
EPISODES_PER_FILE = 20


def ensure(config: TrainConfig) -> TrainConfig:
    """Returns the config with `root` of its sample sources set to demonstrations, which are made first if need be."""
    extra = tuple(_with_root(source) for source in config.data.extra_sources)
    return dataclasses.replace(config, data=dataclasses.replace(_with_root(config.data), extra_sources=extra))


Source = TypeVar("Source", bound=SourceConfig)


def _with_root(source: Source) -> Source:
    if source.source != "sample" or source.root is not None:
        return source
    root = make(source.generation, source.sample_demos, source.modalities)
    return dataclasses.replace(source, root=str(root))


def make(generation: Generation, num_demos: int, modalities: tuple[Modality, ...] = ("rgb",)) -> pathlib.Path:
    """Returns the directory of `num_demos` demonstrations, made now or before.

    Args:
        generation: the format to write.
        num_demos: over all goals.
        modalities: what they have videos of.
    """
    name = "-".join([generation, str(num_demos), *sorted(set(modalities) - {"rgb"}), code_version()])
    root = paths.cache_dir() / "sample" / name
    make_once(root, lambda partial: write(partial, generation, num_demos, modalities))
    return root


def make_once(root: pathlib.Path, write_data: Callable[[pathlib.Path], None]) -> None:
    """Has a data set written that is not there yet: by one process, for which others that want it wait.

    It appears at `root` when it is whole; what a killed process left of it is removed first.
    """
    if root.exists():
        return
    with paths.locked(root.with_name(f"{root.name}.lock")):
        if root.exists():
            return
        logger.info("making generated data in %s", root)
        partial = root.with_name(f"{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write_data(partial)
            partial.rename(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write(
    root: pathlib.Path, generation: Generation, num_demos: int, modalities: tuple[Modality, ...] = ("rgb",)
) -> None:
    """Writes a data set to `root`, on all cores."""
    files = group_into_files(num_demos)
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool,
        tqdm.tqdm(total=num_demos, desc="sample demonstrations", unit="episode") as progress,
    ):
        futures = [pool.submit(write_file, root, generation, file, modalities) for file in files]
        episodes = []
        for future in futures:
            episodes += future.result()
            progress.update(len(episodes) - progress.n)
    WRITERS[generation].write_meta(root, episodes, modalities)


def group_into_files(num_demos: int) -> list[tuple[Goal, list[int], int]]:
    """Returns (goal, instances, file index within the goal's chunk), in the data set's order."""
    by_goal: dict[Goal, list[int]] = {}
    for goal, instance in goals_by_demo(num_demos):
        by_goal.setdefault(goal, []).append(instance)
    return [
        (goal, instances[start : start + EPISODES_PER_FILE], start // EPISODES_PER_FILE)
        for goal, instances in by_goal.items()
        for start in range(0, len(instances), EPISODES_PER_FILE)
    ]


def write_file(
    root: pathlib.Path,
    generation: Generation,
    file: tuple[Goal, list[int], int],
    modalities: tuple[Modality, ...] = ("rgb",),
) -> list[dict]:
    """Records and writes episodes of one goal, an entry of `group_into_files`; returns what `write_meta` needs."""
    goal, instances, file_index = file
    recordings = [record(instance, goal, PROPRIO[generation], modalities) for instance in instances]
    return WRITERS[generation].write_files(root, recordings, file_index)


def code_version() -> str:
    """Returns a hash of the code that makes the demonstrations: changed code makes new ones."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    for path in sorted([*package.glob("sample/*.py"), *package.glob("robots/*.py"), package / "lerobot_format.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
