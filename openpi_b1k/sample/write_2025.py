"""Writes demonstrations in the layout of behavior-1k/2025-challenge-demos: LeRobot v2.1, one file per episode.

Source: the templates, features and encoder settings of BEHAVIOR-1K's 2025 release and its `lerobot_utils.py`,
`replay_obs.py`.
"""

import json
import pathlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.config.data import Modality
from openpi_b1k.lerobot_format import statistics, vectors
from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO_2025
from openpi_b1k.sample.columns import (
    annotation,
    task_lines,
    video_feature,
    write_json,
    write_lines,
)
from openpi_b1k.sample.recording import Recording
from openpi_b1k.sample.render import SIZES
from openpi_b1k.sample.scene import MESHES
from openpi_b1k.sample.videos import DepthCode, Encoding, encode_video, paint_instances
from openpi_b1k.sample.world import FPS, GOALS

CHUNK = 10_000
TEMPLATES = {
    "data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet",
    "video_path": "videos/task-{episode_chunk:04d}/{video_key}/episode_{episode_index:08d}.mp4",
    "metainfo_path": "meta/episodes/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
    "annotation_path": "annotations/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
}
X265 = "log-level=none:keyint=250:pools=none:frame-threads=1"
COLOURS = Encoding({"x265-params": X265})
DISTANCES = Encoding({"x265-params": f"{X265}:lossless=1"}, pixel_format="yuv420p10le", frame_format="gray16le")
"""What the release's writer asks for. The 14-bit codes enter as 16-bit grey, of which 10 bits keep the upper ones."""
DEPTH_CODE = DepthCode(nearest=0.0, num_bits=14)
BACKGROUND = 0
STATISTICS = {
    "action": lambda recording: recording.actions,
    "observation.state": lambda recording: recording.proprio,
    "observation.cam_rel_poses": lambda recording: camera_poses(recording),  # noqa: PLW0108 - it is defined below
}


def episode_index(recording: Recording) -> int:
    """Returns the release's sparse number of an episode: task, instance, take 0."""
    return recording.goal.task_index * CHUNK + recording.instance * 10


def write_files(root: pathlib.Path, recordings: list[Recording], file_index: int) -> list[dict]:
    """Writes some episodes of one task: parquet, videos, metainfo and annotation of each.

    Returns:
        For each its line of episodes.jsonl under "episode" and of episodes_stats.jsonl under "stats".
    """
    del file_index  # every episode has files of its own
    return [write_episode(root, recording) for recording in recordings]


def write_episode(root: pathlib.Path, recording: Recording) -> dict:
    """Writes one episode's files and returns its lines of metadata."""
    index = episode_index(recording)
    paths = {
        name: root / template.format(episode_chunk=index // CHUNK, episode_index=index, video_key="{video_key}")
        for name, template in TEMPLATES.items()
    }
    write_rows(paths["data_path"], recording, index)
    write_videos(str(paths["video_path"]), recording)
    write_json(paths["metainfo_path"], metainfo(recording))
    write_json(paths["annotation_path"], annotation(recording))
    return {
        "episode": {
            "episode_index": index,
            "tasks": [recording.goal.prompt],
            "length": recording.length,
            "distance_traveled": 0.0,
            "left_eef_displacement": displacement(recording, "eef_left_pos"),
            "right_eef_displacement": displacement(recording, "eef_right_pos"),
        },
        "stats": {
            "episode_index": index,
            "stats": {name: statistics(values(recording)) for name, values in STATISTICS.items()},
        },
    }


def video_keys(modality: Modality) -> dict[str, str]:
    """Returns {camera: the data set's name of its videos}."""
    return {camera.name: camera.video_keys(modality)[0] for camera in CAMERAS}


def write_videos(template: str, recording: Recording) -> None:
    """Writes the episode's videos of every modality that was recorded; `template` is a path with a {video_key}."""
    colours, distances = video_keys("rgb"), video_keys("depth")
    for camera, frames in recording.frames.items():
        encode_video(pathlib.Path(template.format(video_key=colours[camera])), frames, SIZES[camera], COLOURS)
    for camera, depth in recording.depth.items():
        path = pathlib.Path(template.format(video_key=distances[camera]))
        encode_video(path, DEPTH_CODE.encode(depth), SIZES[camera], DISTANCES)
    painted = video_keys("segmentation") if recording.instances else {}
    for camera, key in painted.items():
        instances = recording.instances[camera]
        frames = paint_instances(instances, instance_numbers(instances))
        encode_video(pathlib.Path(template.format(video_key=key)), frames, SIZES[camera], COLOURS)


def instance_numbers(instances: np.ndarray) -> list[int]:
    """Returns the instances of a video in the order of its palette, which is any order: here descending."""
    return [BACKGROUND, *np.unique(instances)[::-1].tolist()]


def metainfo(recording: Recording) -> dict:
    """Returns the episode's entry of meta/episodes: with segmentation, which instances its videos show."""
    content = {"robot_type": "R1Pro", "num_samples": recording.length, "task_obs_keys": []}
    if recording.instances:
        scene = {number: f"/World/scene_0/{mesh}" for number, mesh in MESHES.items()}
        content["ins_id_mapping"] = json.dumps({0: "background", 1: "unlabelled", **scene})
    for camera in CAMERAS:
        if camera.name in recording.instances:
            numbers = instance_numbers(recording.instances[camera.name])
            content[f"{camera.simulator_name}::unique_ins_ids"] = numbers
    return content


def write_meta(root: pathlib.Path, episodes: list[dict], modalities: Collection[Modality] = ("rgb",)) -> None:
    """Writes meta/ from what `write_files` returned, in order."""
    meta = root / "meta"
    write_lines(meta / "tasks.jsonl", task_lines())
    write_lines(meta / "episodes.jsonl", [entry["episode"] for entry in episodes])
    write_lines(meta / "episodes_stats.jsonl", [entry["stats"] for entry in episodes])
    info = {
        "codebase_version": "v2.1",
        "robot_type": "R1Pro",
        "total_episodes": len(episodes),
        "total_frames": sum(entry["episode"]["length"] for entry in episodes),
        "total_tasks": len(GOALS),
        "total_videos": len(CAMERAS) * len(modalities) * len(episodes),
        "chunks_size": CHUNK,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        **TEMPLATES,
        "features": features(modalities),
    }
    write_json(meta / "info.json", info)


def write_rows(path: pathlib.Path, recording: Recording, index: int) -> None:
    """Writes the low-dimensional columns of one episode."""
    length = recording.length
    columns = {
        "index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, index)),
        "task_index": pa.array(np.full(length, recording.goal.task_index)),
        "timestamp": pa.array(np.arange(length) / FPS),
        "observation.state": vectors(recording.proprio),
        "observation.cam_rel_poses": vectors(camera_poses(recording)),
        "action": vectors(recording.actions),
        "observation.task_info": vectors(np.zeros((length, 0), np.float32)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def camera_poses(recording: Recording) -> np.ndarray:
    """Returns position and xyzw quaternion of the three cameras in the base frame, float32 [n, 21]."""
    pose = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], np.float32)
    poses = np.tile(pose, (recording.length, 3))
    for i, hand in enumerate(("left", "right")):
        poses[:, 7 * i : 7 * i + 3] = recording.proprio[:, PROPRIO_2025.slice(f"eef_{hand}_pos")]
    return poses


def displacement(recording: Recording, field: str) -> float:
    """Returns the length in m of the path a proprio position takes."""
    positions = recording.proprio[:, PROPRIO_2025.slice(field)]
    return round(float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()), 4)


def features(modalities: Collection[Modality]) -> dict:
    """Returns the features entry of info.json for the cameras as drawn here."""
    videos = {}
    for modality in ("rgb", "depth", "segmentation"):
        if modality in modalities:
            # The release declares a pixel format of its depth that libx265 cannot write: files have to be looked into.
            declared = {"channel": "depth", "pixel_format": "yuv420p16le"} if modality == "depth" else {}
            for camera in ("left_wrist", "right_wrist", "head"):
                videos[video_keys(modality)[camera]] = video_feature(camera, "libx265", **declared)
    columns = {
        "action": ("float32", 23),
        "timestamp": ("float64", 1),
        "episode_index": ("int64", 1),
        "index": ("int64", 1),
        "observation.cam_rel_poses": ("float32", 21),
        "observation.state": ("float32", PROPRIO_2025.size),
        "observation.task_info": ("float32", None),
    }
    return videos | {name: {"dtype": dtype, "shape": [size], "names": None} for name, (dtype, size) in columns.items()}
