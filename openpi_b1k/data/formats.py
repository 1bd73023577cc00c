"""The meta files of LeRobot v2.1 (2025 challenge) and v3.0 (2026 challenge), read into an EpisodeIndex.

All that differs between the two stands here and in robots/r1pro.py. Trusted: info.json for path templates and image
sizes, the episode list for lengths and addresses. Not trusted: info.json's totals, which partial downloads break.
Source: meta files of behavior-1k/2025-challenge-demos and behavior-1k/2026-challenge-demos; LeRobot 0.4.4 for v3.0.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.config.data import DataConfig, Generation
from openpi_b1k.data.columns import PROPRIO
from openpi_b1k.data.episodes import EpisodeIndex, Video
from openpi_b1k.data.prompts import Task, read_json_lines, read_tasks, task_numbers
from openpi_b1k.robots import r1pro
from openpi_b1k.robots.layout import Layout

GENERATIONS: dict[str, Generation] = {"v2.1": "2025", "v3.0": "2026"}
RECIPES = {"2025": "pi05_b1k", "2026": "pi05_b1k_2026"}
META_FILES = ("info.json", "tasks.jsonl", "stats.json", "episodes_stats.jsonl")
"""Part of the fingerprint: corrected data come with new statistics under the same lengths."""
DIGEST_BYTES = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class _Episodes:
    """Values by episode, as a format tells them."""

    numbers: np.ndarray
    lengths: np.ndarray
    tasks: np.ndarray
    prompts: list[str]
    data_files: list[str]
    video_files: np.ndarray
    first_frames: np.ndarray


def proprio_layout(generation: Generation) -> Layout:
    """Returns what the robot of a generation sends as proprio."""
    return r1pro.PROPRIO[generation]


def open_index(root: pathlib.Path, config: DataConfig) -> EpisodeIndex:
    """Returns the index of the data set at `root`, restricted to the config's tasks.

    Raises:
        FileNotFoundError: a meta file is missing, or the first file of a chosen task.
        ValueError: the data are of another generation, a task is unknown or has no episode or no prompt, or a camera
            or column that is needed is not there.
    """
    info = read_info(root, config.generation)
    tasks = read_tasks(root / "meta/tasks.jsonl")
    videos = find_videos(root, info, config.transforms.cameras)
    read = _read_2025 if config.generation == "2025" else _read_2026
    index = _index(root, info, videos, tasks, read(root, info, videos, tasks))
    if config.tasks:
        chosen = task_numbers(config.tasks, tasks, root / "meta/tasks.jsonl")
        absent = [tasks[task].name for task in chosen if task not in index.tasks]
        if absent:
            held = ", ".join(tasks[task].name for task in np.unique(index.tasks).tolist())
            raise ValueError(f"no episodes of {', '.join(absent)} in {root}; it has {held}")
        index = index.select(chosen)
    if not len(index):
        raise ValueError(f"no episodes in the meta files of {root}")
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
    found = GENERATIONS.get(version)
    if found is None:
        known = " or ".join(f"{version} ({generation})" for version, generation in GENERATIONS.items())
        raise ValueError(f"{path} has codebase_version {version!r}; this reader knows {known}")
    if found != generation:
        raise ValueError(
            f"{root} holds data of the {found} challenge (LeRobot {version}), but the config says {generation}: use "
            f"recipe {RECIPES[found]}, or give --data.generation {found}"
        )
    return info


def find_videos(root: pathlib.Path, info: dict[str, Any], cameras: Sequence[str]) -> tuple[Video, ...]:
    """Returns how the data set stores each camera, with the image size it declares."""
    features = info["features"]
    keys = {camera.name: camera.dataset_keys for camera in r1pro.CAMERAS}
    videos = []
    for camera in cameras:
        key = next((key for key in keys[camera] if key in features), None)
        if key is None:
            held = ", ".join(key for key, feature in features.items() if feature["dtype"] == "video")
            raise ValueError(f"{root} has no video of camera {camera!r}; it has {held}: see --data.transforms.cameras")
        axes = features[key].get("names") or ("height", "width", "channels")
        shape = dict(zip(axes, features[key]["shape"], strict=True))
        videos.append(Video(camera, key, shape["height"], shape["width"]))
    return tuple(videos)


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


def _read_2025(
    root: pathlib.Path, info: dict[str, Any], videos: tuple[Video, ...], tasks: dict[int, Task]
) -> _Episodes:
    """One parquet file per episode, one mp4 per episode and camera; the episode number tells the task."""
    path = root / "meta/episodes.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no episode list at {path}; download the data set's meta/")
    numbers, lengths, prompts = [], [], []
    for where, line in read_json_lines(path):
        number, worded = int(line["episode_index"]), line.get("tasks") or [""]
        task = _known_task(number // info["chunks_size"], tasks, where)
        numbers.append(number)
        lengths.append(int(line["length"]))
        prompts.append(worded[0].strip() or task.prompt)
    order = np.argsort(numbers, kind="stable")
    numbers = np.array(numbers, np.int64)[order]
    chunks = numbers // info["chunks_size"]
    addresses = [
        {"episode_chunk": chunk, "episode_index": number}
        for chunk, number in zip(chunks.tolist(), numbers.tolist(), strict=True)
    ]
    video_files = [info["video_path"].format(video_key=video.key, **a) for a in addresses for video in videos]
    return _Episodes(
        numbers=numbers,
        lengths=np.array(lengths, np.int64)[order],
        tasks=chunks,
        prompts=[prompts[i] for i in order],
        data_files=[info["data_path"].format(**address) for address in addresses],
        video_files=np.array(video_files).reshape(len(numbers), len(videos)),
        first_frames=np.zeros((len(numbers), len(videos)), np.int64),
    )


def _read_2026(
    root: pathlib.Path, info: dict[str, Any], videos: tuple[Video, ...], tasks: dict[int, Task]
) -> _Episodes:
    """Several episodes per parquet file and per mp4; the episode table holds the addresses."""
    table = _episode_table(root, videos)
    task_indices = _tasks_2026(root, table, tasks)

    def files(template: str, prefix: str, **key: str) -> list[str]:
        chunks, files = (table[f"{prefix}/{part}_index"].to_pylist() for part in ("chunk", "file"))
        return [template.format(chunk_index=c, file_index=f, **key) for c, f in zip(chunks, files, strict=True)]

    starts = [table[f"videos/{video.key}/from_timestamp"].to_numpy() for video in videos]
    video_files = [files(info["video_path"], f"videos/{video.key}", video_key=video.key) for video in videos]
    return _Episodes(
        numbers=table["episode_index"].to_numpy().astype(np.int64),
        lengths=table["length"].to_numpy().astype(np.int64),
        tasks=np.array(task_indices, np.int64),
        prompts=[tasks[task].prompt for task in task_indices],
        data_files=files(info["data_path"], "data"),
        video_files=np.array(video_files).T,
        first_frames=np.rint(np.stack(starts, axis=1) * info["fps"]).astype(np.int64),
    )


def _episode_table(root: pathlib.Path, videos: tuple[Video, ...]) -> pa.Table:
    """Returns the columns of meta/episodes/**.parquet that say where an episode lies, by episode number."""
    paths = sorted((root / "meta/episodes").glob("**/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no episode tables at {root / 'meta/episodes'}/**/*.parquet; download the meta/ too")
    required = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    required += [
        f"videos/{video.key}/{part}" for video in videos for part in ("chunk_index", "file_index", "from_timestamp")
    ]
    tables = []
    for path in paths:
        held = pq.read_schema(path).names
        missing = [name for name in required if name not in held]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it is no v3.0 episode table")
        optional = ["task_index"] if "task_index" in held else []
        tables.append(pq.read_table(path, columns=required + optional))
    return pa.concat_tables(tables, promote_options="default").sort_by("episode_index")


def _tasks_2026(root: pathlib.Path, table: pa.Table, tasks: dict[int, Task]) -> list[int]:
    """Returns each episode's task index: its own column, else looked up by name in tasks.parquet or tasks.jsonl."""
    if "task_index" in table.column_names and not table["task_index"].null_count:
        indices = table["task_index"].to_pylist()
    else:
        by_name = {task.prompt: task.index for task in tasks.values()} | {t.name: t.index for t in tasks.values()}
        path = root / "meta/tasks.parquet"
        if path.is_file():
            listed = pq.read_table(path).to_pydict()
            by_name |= dict(zip(listed.get("task") or listed["__index_level_0__"], listed["task_index"], strict=True))
        names = [entry[0] for entry in table["tasks"].to_pylist()]
        unknown = sorted({name for name in names if name not in by_name})
        if unknown:
            raise ValueError(f"{root / 'meta/episodes'} has tasks that are not in {path}: {', '.join(unknown)}")
        indices = [by_name[name] for name in names]
    for task in set(indices):
        _known_task(task, tasks, str(root / "meta/episodes"))
    return indices


def _known_task(task: int, tasks: dict[int, Task], where: str) -> Task:
    if task not in tasks:
        raise ValueError(f"{where} belongs to task {task}, which meta/tasks.jsonl does not list")
    return tasks[task]


def _index(
    root: pathlib.Path,
    info: dict[str, Any],
    videos: tuple[Video, ...],
    tasks: dict[int, Task],
    episodes: _Episodes,
) -> EpisodeIndex:
    """Returns the index of per-episode values, with texts and file names kept once."""
    numbers, lengths = episodes.numbers, episodes.lengths
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"episode {numbers[lengths.argmin()]} of {root} has length {lengths.min()}")
    texts, prompt_ids = np.unique(np.array(episodes.prompts, object), return_inverse=True)
    data, data_ids = np.unique(np.array(episodes.data_files, object), return_inverse=True)
    shown, video_ids = np.unique(episodes.video_files.astype(object), return_inverse=True)
    return EpisodeIndex(
        root=root,
        fps=round(info["fps"]),
        proprio_size=int(info["features"][PROPRIO]["shape"][0]),
        videos=videos,
        numbers=numbers,
        lengths=lengths,
        tasks=episodes.tasks,
        task_names={task.index: task.name for task in tasks.values()},
        prompts=tuple(texts.tolist()),
        prompt_ids=prompt_ids,
        data_files=tuple(data.tolist()),
        data_ids=data_ids,
        video_files=tuple(shown.tolist()),
        video_ids=video_ids.reshape(episodes.video_files.shape),
        first_frames=episodes.first_frames,
        meta_digest=_meta_digest(root / "meta"),
    )


def _meta_digest(meta: pathlib.Path) -> str:
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
