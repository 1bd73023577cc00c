"""Writes rollouts as LeRobot v3.0, with lerobot's own writer. The only module that imports lerobot.

Beside what lerobot writes there are, as in the 2026 release, meta/tasks.jsonl with the tasks' sentences (lerobot's own
table holds their names), annotations, and the column raw_episode_id, after which these are named.
Source: lerobot 0.4.4 `datasets/lerobot_dataset.py`.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from openpi_b1k.curation.encoders import each_frame
from openpi_b1k.curation.rollouts.annotation import annotation, write_text
from openpi_b1k.curation.rollouts.episode import FPS, Facts
from openpi_b1k.curation.rollouts.numbering import Entry
from openpi_b1k.data.index.annotations import annotation_file
from openpi_b1k.data.index.listing import ACTION, PROPRIO
from openpi_b1k.robots.r1pro import CAMERAS, NAME, PROPRIO_2026

CODEC = "h264"
"""It decodes fastest; lerobot puts a key frame at every second frame."""


def write(root: pathlib.Path, entries: Sequence[Entry]) -> None:
    """Writes a data set.

    Args:
        root: its directory, which must not be there.
        entries: rollouts by number.
    """
    keys = video_keys(entries[0].facts)
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        fps=FPS,
        features=features(entries[0].facts, keys),
        root=root,
        robot_type=NAME,
        vcodec=CODEC,
    )
    try:
        for entry in entries:
            add_episode(dataset, entry, keys)
    finally:
        dataset.finalize()
    add_recordings(root, [entry.number for entry in entries])
    lines: dict[str, dict[str, Any]] = {}
    for entry in entries:
        write_text(root / annotation_file(entry.number), json.dumps(annotation(entry), indent=4))
        lines.setdefault(
            entry.task.name, {"task_index": len(lines), "task_name": entry.task.name, "task": entry.task.prompt}
        )
    write_text(root / "meta/tasks.jsonl", "".join(json.dumps(line) + "\n" for line in lines.values()))


def video_keys(facts: Facts) -> dict[str, str]:
    """Returns the name of each camera's video: the 2026 release's for its robot, else plain LeRobot's."""
    place = 1 if facts.proprio_size == PROPRIO_2026.size else 2
    return {camera.name: camera.video_keys("rgb")[place] for camera in CAMERAS}


def features(facts: Facts, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the data set's columns and videos as lerobot wants to be told them."""
    videos = {
        keys[camera]: {"dtype": "video", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
        for camera, size in facts.image_sizes
    }
    sizes = {ACTION: 23, PROPRIO: facts.proprio_size}
    return videos | {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in sizes.items()}


def add_episode(dataset: LeRobotDataset, entry: Entry, keys: dict[str, str]) -> None:
    """Adds a rollout to the data set, its videos encoded by lerobot."""
    proprio, actions = entry.episode.columns()
    first = entry.episode.skipped_frames
    videos = {
        keys[camera]: each_frame(entry.episode.videos[camera], FPS, (size, size))
        for camera, size in entry.facts.image_sizes
    }
    for row in range(-first, len(actions)):
        images = {key: next(frames).to_ndarray(format="rgb24") for key, frames in videos.items()}
        if row >= 0:
            dataset.add_frame(images | {PROPRIO: proprio[row], ACTION: actions[row], "task": entry.task.name})
    dataset.save_episode(parallel_encoding=False)


def add_recordings(root: pathlib.Path, numbers: Sequence[int]) -> None:
    """Adds the column raw_episode_id to the tables of episodes."""
    for path in sorted((root / "meta/episodes").glob("**/*.parquet")):
        table = pq.read_table(path)
        column = pa.array([numbers[index] for index in table["episode_index"].to_pylist()], pa.int64())
        pq.write_table(table.append_column("raw_episode_id", column), path)
