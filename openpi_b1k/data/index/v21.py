"""LeRobot v2.1 as the 2025 challenge uses it: one parquet file per episode, one mp4 per episode and camera.

The episode's number tells its task (number // chunks_size) and names its files and its annotation. openpi-comet's own
rollouts (RFT sets) are in this layout too, with H.264 videos, without cam_rel_poses and with a wrong total_frames;
none of that is read here.
Source: meta files of behavior-1k/2025-challenge-demos; openpi-comet `data_generation/rft/generate_rft_meta.py`.
"""

import pathlib
from typing import Any

import numpy as np

from openpi_b1k.data.index.episodes import Video
from openpi_b1k.data.index.listing import Listing
from openpi_b1k.data.index.tasks import Task, known_task, read_json_lines, read_tasks

TASK_FILE = "meta/tasks.jsonl"


def read_task_table(root: pathlib.Path) -> dict[int, Task]:
    """Returns {task index: task} of meta/tasks.jsonl; see `tasks.read_tasks` for what is refused."""
    return read_tasks(root / TASK_FILE)


def read_listing(
    root: pathlib.Path, info: dict[str, Any], videos: tuple[Video, ...], tasks: dict[int, Task]
) -> Listing:
    """Returns the episodes of meta/episodes.jsonl. An episode's prompt is its own wording, else its task's.

    Raises:
        FileNotFoundError: there is no episode list.
        ValueError: a line lacks its number or length, or belongs to a task that is not listed.
    """
    path = root / "meta/episodes.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no episode list at {path}; download the data set's meta/")
    numbers, lengths, prompts = [], [], []
    for where, line in read_json_lines(path):
        missing = [key for key in ("episode_index", "length") if key not in line]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(line)}")
        number, worded = int(line["episode_index"]), line.get("tasks") or [""]
        task = known_task(number // info["chunks_size"], tasks, where)
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
    return Listing(
        numbers=numbers,
        recordings=numbers,
        lengths=np.array(lengths, np.int64)[order],
        tasks=chunks,
        prompts=[prompts[i] for i in order],
        data_files=[info["data_path"].format(**address) for address in addresses],
        first_rows=np.zeros(len(numbers), np.int64),
        video_files=np.array(video_files, object).reshape(len(numbers), len(videos)),
        first_frames=np.zeros((len(numbers), len(videos)), np.int64),
    )
