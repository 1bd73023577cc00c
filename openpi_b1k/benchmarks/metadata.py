"""Meta files of a LeRobot v3.0 data set of any size, as the 2026 release has them, for data that is generated.

The episode tables carry the statistics of every feature, as those of LeRobot do: they are nine tenths of a table's
bytes, so a reader's time on them means something. Statistics are random numbers of the right shape; the bounds of the
whole data set are far beyond any value.
Source: LeRobot 0.4.4 `datasets/utils.py` and `compute_stats.py`; the 2026 release's info.json.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO_2026

FPS = 30
TEMPLATES = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
EPISODE_TABLE = "meta/episodes/chunk-{task:03d}/file-000.parquet"
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
BOUNDS = {"min": -1e6, "max": 1e6}
VECTORS = {
    "action": ("float32", ACTION.size),
    "observation.state": ("float32", PROPRIO_2026.size),
    "next.reward": ("float32", 1),
    "next.terminated": ("bool", 1),
    "next.truncated": ("bool", 1),
    "timestamp": ("float32", 1),
    "frame_index": ("int64", 1),
    "episode_index": ("int64", 1),
    "index": ("int64", 1),
    "task_index": ("int64", 1),
}
RELEASE_TASKS, RELEASE_EPISODES, RELEASE_FRAMES = 100, 20_000, 210_916_774
RELEASE_LENGTHS = (148, 45_761)
"""Shortest and longest episode of the 2026 release."""
ROWS_PER_FILE = 230_000
FRAMES_PER_VIDEO = {720: 82_845, 480: 150_000}
"""Where the release begins a new mp4, about, by image size."""


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where each episode lies in the files of one kind, of its task's chunk: int64 [e] each."""

    files: np.ndarray
    firsts: np.ndarray
    """Its first row or frame in the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes in order of number, grouped by task. Axis: `e` episodes."""

    tasks: np.ndarray
    """int64 [e], ascending."""
    lengths: np.ndarray
    """int64 [e]"""
    data: Place
    videos: Mapping[str, Place]
    """By video key."""
    sizes: Mapping[str, int]
    """Height and width in pixels by video key."""


def release_episodes(
    episodes: int = RELEASE_EPISODES, frames: int = RELEASE_FRAMES, tasks: int = RELEASE_TASKS, seed: int = 0
) -> Episodes:
    """Returns episodes as long and as spread over files as the 2026 release's, by default as many, with depth too."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(size=episodes) * 0.8)
    for _ in range(50):  # clipping takes some away, so the rest is stretched until the sum is right
        lengths = np.clip(lengths * (frames / lengths.sum()), *RELEASE_LENGTHS)
    lengths = np.diff(np.rint(np.cumsum(lengths)).astype(np.int64), prepend=0)
    task_of = np.sort(np.arange(episodes) % min(tasks, episodes))
    sizes = {key: camera.size for camera in CAMERAS for key in (camera.dataset_keys[1], camera.depth_keys[1])}
    videos = {key: pack(task_of, lengths, FRAMES_PER_VIDEO[size]) for key, size in sizes.items()}
    return Episodes(task_of, lengths, pack(task_of, lengths, ROWS_PER_FILE), videos, sizes)


def pack(tasks: np.ndarray, lengths: np.ndarray, longest: int) -> Place:
    """Returns where episodes lie if each task fills files of about `longest` rows or frames one after the other."""
    files, firsts = np.zeros((2, len(lengths)), np.int64)
    held = 0
    for i in range(len(lengths)):
        if i and tasks[i] == tasks[i - 1]:
            is_full = held + lengths[i] > longest
            files[i] = files[i - 1] + is_full
            held = 0 if is_full else held
        else:
            held = 0
        firsts[i] = held
        held += lengths[i]
    return Place(files, firsts)


def write_meta(root: pathlib.Path, episodes: Episodes, names: Sequence[str], sentences: Sequence[str]) -> None:
    """Writes meta/ of a data set whose task t is called `names[t]` and asked for with `sentences[t]`.

    Raises:
        ValueError: an episode's task has no name.
    """
    if len(names) != len(sentences) or episodes.tasks.max(initial=-1) >= len(names):
        raise ValueError(
            f"every task needs a name and a sentence; got {len(names)} and {len(sentences)} for tasks up to "
            f"{episodes.tasks.max(initial=-1)}"
        )
    (root / "meta").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    features = _features(episodes.sizes)
    _write_json(root / "meta/info.json", _info(episodes, len(names), features))
    stats = {
        name: {
            kind: (BOUNDS.get(kind, 0) + rng.normal(size=_stats_shape(feature, kind))).tolist() for kind in STATISTICS
        }
        for name, feature in features.items()
    }
    _write_json(root / "meta/stats.json", stats)
    lines = [
        json.dumps({"task_index": i, "task_name": name, "task": sentence})
        for i, (name, sentence) in enumerate(zip(names, sentences, strict=True))
    ]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(_task_table(names), root / "meta/tasks.parquet")
    offsets = np.concatenate([[0], np.cumsum(episodes.lengths)])
    stats_of_rows: dict[int, pa.Table] = {}
    for task, name in enumerate(names):
        rows = np.flatnonzero(episodes.tasks == task)
        if not len(rows):
            continue
        if len(rows) not in stats_of_rows:
            stats_of_rows[len(rows)] = _stats_table(features, len(rows), rng)
        table = _addresses(episodes, rows, offsets, name)
        for field, column in zip(stats_of_rows[len(rows)].schema, stats_of_rows[len(rows)].columns, strict=True):
            table = table.append_column(field, column)
        path = root / EPISODE_TABLE.format(task=task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def _task_table(names: Sequence[str]) -> pa.Table:
    """Returns tasks.parquet: LeRobot has pandas keep the names as its index."""
    kinds = {"task_index": ("task_index", "int64", "int64"), "__index_level_0__": (None, "unicode", "object")}
    columns = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for field, (name, kind, dtype) in kinds.items()
    ]
    view = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": np.arange(len(names)), "__index_level_0__": pa.array(names)})
    return table.replace_schema_metadata({"pandas": json.dumps(view)})


def _info(episodes: Episodes, num_tasks: int, features: dict) -> dict:
    return {
        "codebase_version": "v3.0",
        "robot_type": "R1Pro",
        "total_episodes": len(episodes.lengths),
        "total_frames": int(episodes.lengths.sum()),
        "total_tasks": num_tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes.lengths)}"},
        **TEMPLATES,
        "features": features,
    }


def _features(sizes: Mapping[str, int]) -> dict[str, dict]:
    vectors = VECTORS | {f"observation.robot2cam_pose.{camera.name}": ("float32", 7) for camera in CAMERAS}
    return {
        key: {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"]}
        for key, size in sizes.items()
    } | {name: {"dtype": dtype, "shape": [size], "names": None} for name, (dtype, size) in vectors.items()}


def _addresses(episodes: Episodes, rows: np.ndarray, offsets: np.ndarray, name: str) -> pa.Table:
    """Returns the columns that say where the episodes of one task are."""
    task, lengths = episodes.tasks[rows], episodes.lengths[rows]
    recordings = task * 10_000 + np.arange(len(rows)) * 10
    columns = {
        "episode_index": rows,
        "tasks": pa.array([[name]] * len(rows)),
        "length": lengths,
        "data/chunk_index": task,
        "data/file_index": episodes.data.files[rows],
        "dataset_from_index": offsets[rows],
        "dataset_to_index": offsets[rows + 1],
    }
    for key, place in episodes.videos.items():
        columns |= {
            f"videos/{key}/chunk_index": task,
            f"videos/{key}/file_index": place.files[rows],
            f"videos/{key}/from_timestamp": place.firsts[rows] / FPS,
            f"videos/{key}/to_timestamp": (place.firsts[rows] + lengths) / FPS,
        }
    columns |= {
        "meta/episodes/chunk_index": task,
        "meta/episodes/file_index": np.zeros_like(task),
        "task_index": task,
        "demo_index_within_task": np.arange(len(rows)),
        "raw_episode_id": recordings,
        "task_instance_id": np.arange(len(rows)),
        "annotation_path": pa.array(
            [f"annotations/task-{t:04d}/episode_{r:08d}.json" for t, r in zip(task, recordings, strict=True)]
        ),
    }
    return pa.table(columns)


def _stats_table(features: dict[str, dict], rows: int, rng: np.random.Generator) -> pa.Table:
    """Returns random statistics of every feature for so many episodes, nested as LeRobot nests them."""
    columns = {}
    for name, feature in features.items():
        for kind in STATISTICS:
            shape = (rows, *_stats_shape(feature, kind))
            values = rng.normal(size=shape)
            if kind == "count" or (kind in BOUNDS and feature["dtype"] in ("int64", "bool")):
                values = (1000 * abs(values)).astype(np.int64 if kind == "count" else feature["dtype"])
            column = pa.array(values.ravel())
            for depth in range(len(shape) - 1, 0, -1):  # innermost lists first
                sizes = np.arange(int(np.prod(shape[:depth])) + 1, dtype=np.int32) * shape[depth]
                column = pa.ListArray.from_arrays(pa.array(sizes), column)
            columns[f"stats/{name}/{kind}"] = column
    return pa.table(columns)


def _stats_shape(feature: dict, kind: str) -> tuple[int, ...]:
    if kind == "count":
        return (1,)
    return (3, 1, 1) if feature["dtype"] == "video" else tuple(feature["shape"])


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2))
