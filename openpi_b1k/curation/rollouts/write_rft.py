"""Writes rollouts in the layout of openpi-comet's RFT data: LeRobot v2.1, one parquet file and three mp4 per episode.

Videos are copied as they are; where frames are left out at the beginning, they are encoded anew. Neither camera poses
nor task_info are written: rollouts do not have them, and training reads neither.
Source: openpi-comet at 4bb2aa7, `data_generation/rft/convert_rft_data.py` and `generate_rft_meta.py`.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.curation.encoders import each_frame, encoder_of, write_video
from openpi_b1k.curation.rollouts.annotation import annotation, write_text
from openpi_b1k.curation.rollouts.episode import FPS
from openpi_b1k.curation.rollouts.numbering import Entry
from openpi_b1k.data.index.annotations import CHUNK, annotation_file
from openpi_b1k.data.index.listing import ACTION, PROPRIO
from openpi_b1k.data.index.tasks import Task
from openpi_b1k.lerobot_format import statistics, vectors
from openpi_b1k.robots.r1pro import CAMERAS, NAME

TEMPLATES = {
    "data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet",
    "video_path": "videos/task-{episode_chunk:04d}/{video_key}/episode_{episode_index:08d}.mp4",
    "metainfo_path": "meta/episodes/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
    "annotation_path": "annotations/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
}
VIDEO_KEYS = {camera.name: camera.video_keys("rgb")[0] for camera in CAMERAS}
KEY_FRAME_DISTANCE, CRF = 8, 20
"""Of videos that are encoded anew, as `prepare_dataset.py` has them."""


def write(root: pathlib.Path, entries: Sequence[Entry], tasks: dict[int, Task], workers: int) -> None:
    """Writes a data set.

    Args:
        root: its directory, which is made.
        entries: rollouts by number.
        tasks: all of its task list.
        workers: processes that copy and encode; 0: this one.
    """
    if workers:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            stats = list(pool.map(write_episode, itertools.repeat(root), entries))
    else:
        stats = [write_episode(root, entry) for entry in entries]
    meta = root / "meta"
    write_lines(meta / "tasks.jsonl", [task_line(task) for task in tasks.values()])
    write_lines(meta / "episodes.jsonl", [episode_line(entry) for entry in entries])
    numbered = zip(entries, stats, strict=True)
    write_lines(meta / "episodes_stats.jsonl", [{"episode_index": e.number, "stats": stat} for e, stat in numbered])
    write_text(meta / "info.json", json.dumps(info(entries, tasks), indent=4))


def write_episode(root: pathlib.Path, entry: Entry) -> dict[str, Any]:
    """Writes rows, videos, annotation and metainfo of one episode; returns the statistics of its rows."""
    address = {"episode_chunk": entry.number // CHUNK, "episode_index": entry.number}
    proprio, actions = entry.episode.columns()
    length = len(actions)
    columns = {
        "index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, entry.number)),
        "task_index": pa.array(np.full(length, entry.task.index)),
        "timestamp": pa.array(np.arange(length) / FPS),
        PROPRIO: vectors(proprio),
        ACTION: vectors(actions),
    }
    rows = root / TEMPLATES["data_path"].format(**address)
    rows.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), rows)
    for camera, size in entry.facts.image_sizes:
        path = root / TEMPLATES["video_path"].format(video_key=VIDEO_KEYS[camera], **address)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frames(entry.episode.videos[camera], path, entry.episode.skipped_frames, size)
    metainfo = {"robot_type": NAME, "num_samples": length, "task_obs_keys": []}
    write_text(root / TEMPLATES["metainfo_path"].format(**address), json.dumps(metainfo))
    write_text(root / annotation_file(entry.number), json.dumps(annotation(entry), indent=4))
    return {ACTION: statistics(actions), PROPRIO: statistics(proprio)}


def write_frames(source: pathlib.Path, target: pathlib.Path, skipped_frames: int, size: int) -> None:
    """Copies a video, or encodes it anew without its first frames."""
    if not skipped_frames:
        shutil.copyfile(source, target)
        return
    frames = itertools.islice(each_frame(source, FPS, (size, size)), skipped_frames, None)
    pictures = (av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24") for frame in frames)
    write_video(target, pictures, encoder_of("rgb", KEY_FRAME_DISTANCE, CRF), size, FPS)


def info(entries: Sequence[Entry], tasks: dict[int, Task]) -> dict[str, Any]:
    """Returns the content of meta/info.json."""
    facts = entries[0].facts
    videos = {VIDEO_KEYS[camera]: video_feature(size) for camera, size in facts.image_sizes}
    columns = {
        ACTION: ("float32", 23),
        "timestamp": ("float64", 1),
        "episode_index": ("int64", 1),
        "index": ("int64", 1),
        PROPRIO: ("float32", facts.proprio_size),
    }
    return {
        "codebase_version": "v2.1",
        "robot_type": NAME,
        "total_episodes": len(entries),
        "total_frames": sum(entry.facts.length for entry in entries),
        "total_tasks": len(tasks),
        "total_videos": len(VIDEO_KEYS) * len(entries),
        "chunks_size": CHUNK,
        "fps": FPS,
        "splits": {"train": f"0:{len(entries)}"},
        **TEMPLATES,
        "features": videos
        | {name: {"dtype": dtype, "shape": [size], "names": None} for name, (dtype, size) in columns.items()},
    }


def video_feature(size: int) -> dict[str, Any]:
    """Returns the entry of a camera's video in info.json; the codec is each file's own affair and not told."""
    return {
        "dtype": "video",
        "shape": [size, size, 3],
        "names": ["height", "width", "rgb"],
        "info": {
            "video.fps": float(FPS),
            "video.height": size,
            "video.width": size,
            "video.channels": 3,
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "has_audio": False,
        },
    }


def task_line(task: Task) -> dict[str, Any]:
    """Returns a line of meta/tasks.jsonl."""
    return {"task_index": task.index, "task_name": task.name, "task": task.prompt}


def episode_line(entry: Entry) -> dict[str, Any]:
    """Returns a line of meta/episodes.jsonl: what the format asks for, and where the episode comes from."""
    episode = entry.episode
    return {
        "episode_index": entry.number,
        "tasks": [entry.prompt],
        "length": entry.facts.length,
        "rollout": episode.name,
        "success": episode.success,
        "q_score": episode.q_score,
        "recorded_in": str(episode.directory),
    }


def write_lines(path: pathlib.Path, entries: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines; the directory is made."""
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
