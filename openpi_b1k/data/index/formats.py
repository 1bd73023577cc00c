"""The one call that reads a data set's meta files, whatever its format, and the checks that hold for all.

Trusted: info.json for path templates and image sizes, the episode list for lengths and addresses. Not trusted:
info.json's totals, which partial downloads break and openpi-comet's rollout sets have wrong. Never read: task_info.
"""

import hashlib
import json
import pathlib
import re
from types import ModuleType
from typing import Any

import numpy as np

from openpi_b1k.config.data import Generation, SourceConfig
from openpi_b1k.data.index import selection, v21, v30
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.listing import ACTION, PROPRIO, to_index
from openpi_b1k.data.index.videos import find_videos
from openpi_b1k.robots import r1pro
from openpi_b1k.robots.layout import Layout

FORMATS: dict[str, ModuleType] = {"v2.1": v21, "v3.0": v30}
GENERATIONS: dict[str, Generation] = {"v2.1": "2025", "v3.0": "2026"}
RECIPES = {"2025": "pi05_b1k", "2026": "pi05_b1k_2026"}
META_FILES = ("info.json", "tasks.jsonl", "tasks.parquet", "stats.json", "episodes.jsonl", "episodes_stats.jsonl")
"""Part of the fingerprint: corrected data come with new statistics under the same lengths."""
DIGEST_BYTES = 2**20


def proprio_layout(generation: Generation) -> Layout:
    """Returns what the robot of a generation sends as proprio."""
    return r1pro.PROPRIO[generation]


def open_index(root: pathlib.Path, source: SourceConfig) -> EpisodeIndex:
    """Returns the index of the data set at `root`, restricted to the source's tasks and episodes.

    Held-out episodes are among them; `selection.split` separates them.

    Raises:
        FileNotFoundError: a meta file is missing, or the first file of a chosen task.
        ValueError: the data are of another generation or robot, a task is unknown or has no episode, no prompt or fewer
            episodes than were chosen, or a video or column that is needed is not there.
    """
    info = read_info(root, source.generation)
    check_robot(root, info)
    reader = FORMATS[info["codebase_version"]]
    tasks = reader.read_task_table(root)
    videos = find_videos(root, info, source)
    listing = reader.read_listing(root, info, videos, tasks)
    index = to_index(root, info, videos, tasks, listing, meta_digest(root / "meta"))
    if not len(index):
        raise ValueError(f"no episodes in the meta files of {root}")
    index = selection.choose(index, source, tasks)
    check_prompts_are_there(index)
    check_files(index)
    return index


def read_info(root: pathlib.Path, generation: Generation) -> dict[str, Any]:
    """Returns meta/info.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or describes another format than the generation's.
    """
    path = root / "meta/info.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; --data.root must be the directory that holds meta/, data/ and videos/")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; download it again") from error
    version = info.get("codebase_version")
    if version not in FORMATS:
        known = " or ".join(f"{version} ({generation})" for version, generation in GENERATIONS.items())
        raise ValueError(f"{path} has codebase_version {version!r}; this reader knows {known}")
    found = generation_of(info)
    if found != generation:
        raise ValueError(
            f"{root} holds data of the {found} challenge (LeRobot {version}), but the config says {generation}: use "
            f"recipe {RECIPES[found]}, or give --data.generation {found}"
        )
    return info


def generation_of(info: dict[str, Any]) -> Generation:
    """Returns whose robot state an info.json describes; where its size does not tell, whose format it has."""
    size = (info["features"].get(PROPRIO) or {}).get("shape")
    for generation in GENERATIONS.values():
        if size == [r1pro.PROPRIO[generation].size]:
            return generation
    return GENERATIONS[info["codebase_version"]]


def check_robot(root: pathlib.Path, info: dict[str, Any]) -> None:
    """Refuses data of a robot without a table.

    Raises:
        ValueError: the robot's name, or the size of its action or state, is not that of a known robot.
    """
    name = info.get("robot_type")
    if name and re.sub(r"\W|_", "", name).casefold() != r1pro.NAME.casefold():
        raise ValueError(
            f"{root} holds data of robot {name!r}, which has no table in openpi_b1k/robots; known robots: {r1pro.NAME}"
        )
    layouts = (*r1pro.PROPRIO.values(), r1pro.PROPRIO_IN_USE)
    for key, sizes in ((ACTION, (r1pro.ACTION.size,)), (PROPRIO, tuple(layout.size for layout in layouts))):
        shape = (info["features"].get(key) or {}).get("shape")
        if shape not in [[size] for size in sizes]:
            known = " or ".join(str(size) for size in sizes)
            raise ValueError(f"{key} of {root} has shape {shape}; that of {r1pro.NAME} has {known} entries")


def check_prompts_are_there(index: EpisodeIndex) -> None:
    """Raises ValueError if an episode has no prompt: a policy would learn to act without being told what."""
    for task, prompts in index.prompts_by_task().items():
        if "" in prompts:
            raise ValueError(
                f"task {task!r} has no prompt in the meta files of {index.root}; give its line in "
                f'{index.root / "meta/tasks.jsonl"} a "task", or leave it out with --data.tasks'
            )


def check_files(index: EpisodeIndex) -> None:
    """Raises FileNotFoundError if a file of any task's first episode is missing: a partial download, told early."""
    for task, row in zip(*np.unique(index.tasks, return_index=True), strict=True):
        files = [index.data_files[index.data_ids[row]], *(index.video_files[i] for i in index.video_ids[row])]
        for file in files:
            if not (index.root / file).is_file():
                raise FileNotFoundError(
                    f"task {index.task_names[int(task)]} is listed in {index.root / 'meta'}, but {index.root / file} "
                    "is missing; download it, or choose the tasks that are there with --data.tasks"
                )


def meta_digest(meta: pathlib.Path) -> str:
    """Returns a hash of the meta files' sizes, beginnings and ends: one of them takes 367 MB."""
    digest = hashlib.sha256()
    for path in (meta / name for name in META_FILES):
        if not path.is_file():
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name} {size} ".encode() + file.read(DIGEST_BYTES))
            file.seek(max(0, size - DIGEST_BYTES))
            digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()
