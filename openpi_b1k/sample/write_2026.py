"""Writes demonstrations in the layout of behavior-1k/2026-challenge-demos: LeRobot v3.0, many episodes per file.

Source: the 2026 release's info.json and OmniGibson's `eval/envs/lerobot_data_wrapper.py`: chunk = task, dense episode
numbers, HEVC with a key frame every 8 frames and no B-frames, task names in the episode table and sentences in
tasks.jsonl.
"""

import json
import pathlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.config.data import Modality
from openpi_b1k.lerobot_format import statistics, vectors
from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO_2026
from openpi_b1k.sample.columns import (
    annotation,
    task_lines,
    video_feature,
    write_json,
    write_lines,
)
from openpi_b1k.sample.recording import Recording
from openpi_b1k.sample.render import SIZES
from openpi_b1k.sample.videos import DepthCode, Encoding, encode_video
from openpi_b1k.sample.world import FPS, GOALS

TEMPLATES = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
VIDEO_KEYS = {camera.name: camera.dataset_keys[1] for camera in CAMERAS}
DEPTH_KEYS = {camera.name: camera.depth_keys[1] for camera in CAMERAS}
X265 = "log-level=none:keyint=8:min-keyint=8:bframes=0:pools=none:frame-threads=1"
COLOURS = Encoding({"crf": "30", "x265-params": X265})
DISTANCES = Encoding({"crf": "0", "x265-params": X265}, pixel_format="gray12le", frame_format="gray12le")
DEPTH_CODE = DepthCode(nearest=0.01, num_bits=12)


def write_files(root: pathlib.Path, recordings: list[Recording], file_index: int) -> list[dict]:
    """Writes the videos and annotations of some episodes of one task, one video file per camera.

    Returns:
        For each its place, length, rows and statistics, from which `write_meta` writes the rest.
    """
    task = recordings[0].goal.task_index
    template = str(root / TEMPLATES["video_path"]).replace("{video_key}", "{{video_key}}")
    write_videos(template.format(chunk_index=task, file_index=file_index), recordings)
    starts = np.cumsum([0] + [recording.length for recording in recordings])
    entries = []
    for recording, start in zip(recordings, starts, strict=False):
        raw_id = task * 10_000 + recording.instance * 10
        annotation_path = f"annotations/task-{task:04d}/episode_{raw_id:08d}.json"
        write_json(root / annotation_path, annotation(recording))
        entries.append(
            {
                "task": task,
                "file": file_index,
                "first_frame": int(start),
                "instance": recording.instance,
                "raw_episode_id": raw_id,
                "video_keys": [*VIDEO_KEYS.values(), *(DEPTH_KEYS[camera] for camera in recording.depth)],
                "annotation_path": annotation_path,
                "proprio": recording.proprio,
                "actions": recording.actions,
                "pressed_at": recording.pressed_at,
            }
        )
    return entries


def write_videos(template: str, recordings: list[Recording]) -> None:
    """Writes the episodes one after the other into a file per camera and modality.

    Args:
        template: the files' path with a {video_key}.
        recordings: with the same modalities.

    Raises:
        ValueError: segmentation was recorded, for which the 2026 release has no videos.
    """
    if recordings[0].instances:
        raise ValueError("the 2026 release has no segmentation videos; use generation 2025")
    for camera, key in VIDEO_KEYS.items():
        frames = (frame for recording in recordings for frame in recording.frames[camera])
        encode_video(pathlib.Path(template.format(video_key=key)), frames, SIZES[camera], COLOURS)
    for camera in recordings[0].depth:
        codes = (DEPTH_CODE.encode(depth) for recording in recordings for depth in recording.depth[camera])
        path = pathlib.Path(template.format(video_key=DEPTH_KEYS[camera]))
        encode_video(path, codes, SIZES[camera], DISTANCES)


def write_meta(root: pathlib.Path, episodes: list[dict], modalities: Collection[Modality] = ("rgb",)) -> None:
    """Writes data/ and meta/ from what `write_files` returned, in order."""
    lengths = [len(entry["actions"]) for entry in episodes]
    rows = [
        episode_rows(entry, index, first)
        for index, (entry, first) in enumerate(zip(episodes, np.cumsum([0, *lengths[:-1]]), strict=True))
    ]
    for file in {(entry["task"], entry["file"]) for entry in episodes}:
        tables = [table for table, entry in zip(rows, episodes, strict=True) if (entry["task"], entry["file"]) == file]
        path = root / TEMPLATES["data_path"].format(chunk_index=file[0], file_index=file[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path)
    write_episode_tables(root, episodes, np.cumsum([0, *lengths]))
    write_tasks(root / "meta")
    everything = {
        "action": np.concatenate([entry["actions"] for entry in episodes]),
        "observation.state": np.concatenate([entry["proprio"] for entry in episodes]),
    }
    write_json(root / "meta/stats.json", {name: statistics(values) for name, values in everything.items()})
    write_json(
        root / "meta/info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": "R1Pro",
            "total_episodes": len(episodes),
            "total_frames": sum(lengths),
            "total_tasks": len(GOALS),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": FPS,
            "splits": {"train": f"0:{len(episodes)}"},
            **TEMPLATES,
            "features": features(modalities),
        },
    )


def episode_rows(entry: dict, index: int, first: int) -> pa.Table:
    """Returns the low-dimensional rows of episode `index`, whose first row is `first` of the data set."""
    length = len(entry["actions"])
    is_last = np.arange(length) == length - 1
    return pa.table(
        {
            "action": vectors(entry["actions"]),
            "observation.state": vectors(entry["proprio"]),
            **{f"observation.robot2cam_pose.{suffix(key)}": camera_pose(entry, key) for key in VIDEO_KEYS.values()},
            "next.reward": pa.array((np.arange(length) >= entry["pressed_at"]).astype(np.float32)),
            "next.terminated": pa.array(is_last),
            "next.truncated": pa.array(np.zeros(length, bool)),
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, index)),
            "index": pa.array(np.arange(first, first + length)),
            "task_index": pa.array(np.full(length, entry["task"])),
        }
    )


def camera_pose(entry: dict, key: str) -> pa.Array:
    """Returns a camera's position and xyzw quaternion in the base frame at every row."""
    pose = np.tile(np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], np.float32), (len(entry["actions"]), 1))
    for hand in ("left", "right"):
        if hand in key:
            pose[:, :3] = entry["proprio"][:, PROPRIO_2026.slice(f"eef_{hand}_pos")]
    return vectors(pose)


def write_episode_tables(root: pathlib.Path, episodes: list[dict], offsets: np.ndarray) -> None:
    """Writes meta/episodes, one file per task: where each episode's rows and frames are."""
    by_task: dict[int, list[dict]] = {}
    for index, entry in enumerate(episodes):
        task, length = entry["task"], len(entry["actions"])
        row = {
            "episode_index": index,
            "tasks": [GOALS[task].task_name],
            "length": length,
            "data/chunk_index": task,
            "data/file_index": entry["file"],
            "dataset_from_index": int(offsets[index]),
            "dataset_to_index": int(offsets[index + 1]),
        }
        for key in entry["video_keys"]:
            row |= {
                f"videos/{key}/chunk_index": task,
                f"videos/{key}/file_index": entry["file"],
                f"videos/{key}/from_timestamp": entry["first_frame"] / FPS,
                f"videos/{key}/to_timestamp": (entry["first_frame"] + length) / FPS,
            }
        for name, values in (("action", entry["actions"]), ("observation.state", entry["proprio"])):
            row |= {f"stats/{name}/{kind}": numbers for kind, numbers in statistics(values).items()}
        row |= {
            "meta/episodes/chunk_index": task,
            "meta/episodes/file_index": 0,
            "task_index": task,
            "demo_index_within_task": len(by_task.get(task, [])),
            "raw_episode_id": entry["raw_episode_id"],
            "task_instance_id": entry["instance"],
            "annotation_path": entry["annotation_path"],
        }
        by_task.setdefault(task, []).append(row)
    for task, entries in by_task.items():
        path = root / f"meta/episodes/chunk-{task:03d}/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(entries), path)


def write_tasks(meta: pathlib.Path) -> None:
    """Writes tasks.jsonl (names and sentences) and tasks.parquet (names, as lerobot indexes them)."""
    write_lines(meta / "tasks.jsonl", task_lines())
    table = pa.table(
        {
            "task_index": pa.array([goal.task_index for goal in GOALS]),
            "__index_level_0__": pa.array([goal.task_name for goal in GOALS]),
        }
    )
    columns = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, field, kind, dtype in (
            ("task_index", "task_index", "int64", "int64"),
            (None, "__index_level_0__", "unicode", "object"),
        )
    ]
    pandas_view = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": columns}
    metadata = {"pandas": json.dumps(pandas_view | {"pandas_version": "2.0.0"})}
    pq.write_table(table.replace_schema_metadata(metadata), meta / "tasks.parquet")


def features(modalities: Collection[Modality]) -> dict:
    """Returns the features entry of info.json for the cameras as drawn here."""
    columns = {
        "action": ("float32", 23),
        "observation.state": ("float32", PROPRIO_2026.size),
        **{f"observation.robot2cam_pose.{suffix(key)}": ("float32", 7) for key in VIDEO_KEYS.values()},
        "next.reward": ("float32", 1),
        "next.terminated": ("bool", 1),
        "next.truncated": ("bool", 1),
        "timestamp": ("float32", 1),
        "frame_index": ("int64", 1),
        "episode_index": ("int64", 1),
        "index": ("int64", 1),
        "task_index": ("int64", 1),
    }
    videos = {key: video_feature(camera, "hevc") for camera, key in VIDEO_KEYS.items()}
    if "depth" in modalities:
        videos |= {key: depth_feature(camera) for camera, key in DEPTH_KEYS.items()}
    return videos | {name: {"dtype": dtype, "shape": [size], "names": None} for name, (dtype, size) in columns.items()}


def depth_feature(camera: str) -> dict:
    """Returns the entry of info.json's features of a camera's depth: one channel, in m."""
    feature = video_feature(camera, "hevc", channel="depth", pixel_format="gray12le")
    size = SIZES[camera]
    return feature | {"shape": [size, size, 1], "info": feature["info"] | {"video.channels": 1}}


def suffix(video_key: str) -> str:
    """Returns the camera's name in the 2026 release."""
    return video_key.removeprefix("observation.rgb.")
