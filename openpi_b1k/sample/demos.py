"""Makes the sample world's demonstrations in the user's cache, once, in the format of either generation."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import multiprocessing
import os
import pathlib
import shutil

import tqdm

from openpi_b1k import paths
from openpi_b1k.config.data import Generation
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import PROPRIO
from openpi_b1k.sample import write_2025, write_2026
from openpi_b1k.sample.recording import goals_by_demo, record
from openpi_b1k.sample.world import Goal

logger = logging.getLogger(__name__)

WRITERS = {"2025": write_2025, "2026": write_2026}
EPISODES_PER_FILE = 20


def ensure(config: TrainConfig) -> TrainConfig:
    """Returns the config with `data.root` set to its demonstrations, which are made first if they are not there."""
    root = config.data.root
    if root is None:
        root = str(make(config.data.generation, config.data.sample_demos))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))


def make(generation: Generation, num_demos: int) -> pathlib.Path:
    """Returns the directory of `num_demos` demonstrations, made now or before.

    Args:
        generation: the format to write.
        num_demos: over all goals.
    """
    root = paths.cache_dir() / "sample" / f"{generation}-{num_demos}-{code_version()}"
    if not root.exists():
        logger.info("making %d demonstrations of the sample world in %s", num_demos, root)
        partial = root.with_name(f"{root.name}.partial-{os.getpid()}")
        try:
            write(partial, generation, num_demos)
            partial.rename(root)
        except OSError:
            if not root.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return root


def write(root: pathlib.Path, generation: Generation, num_demos: int) -> None:
    """Writes a data set to `root`, on all cores."""
    files = group_into_files(num_demos)
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool,
        tqdm.tqdm(total=num_demos, desc="sample demonstrations", unit="episode") as progress,
    ):
        futures = [pool.submit(write_file, root, generation, *file) for file in files]
        episodes = []
        for future in futures:
            episodes += future.result()
            progress.update(len(episodes) - progress.n)
    WRITERS[generation].write_meta(root, episodes)


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
    root: pathlib.Path, generation: Generation, goal: Goal, instances: list[int], file_index: int
) -> list[dict]:
    """Records and writes some episodes of one goal; returns what `write_meta` needs."""
    recordings = [record(instance, goal, PROPRIO[generation]) for instance in instances]
    return WRITERS[generation].write_files(root, recordings, file_index)


def code_version() -> str:
    """Returns a hash of the code that makes the demonstrations: changed code makes new ones."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    for path in sorted([*package.glob("sample/*.py"), *package.glob("robots/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
