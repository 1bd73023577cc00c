"""The subtasks of openpi-comet's orchestrators/**, which are no part of the public data sets.

An episode has a directory with task_annotated.json, whose cot_subtask_description_list has an entry per subtask, and
subtask_<i>_annotated.json for each: cot_subtask_description, start_frame and end_frame, which is not part of it.
Frames between subtasks follow the rules of segments.py. Source: the reader in openpi-comet's `dataset.py`.
"""

import concurrent.futures
import json
import pathlib
from typing import Any

import numpy as np

from openpi_b1k.data.index.annotation_cache import THREADS
from openpi_b1k.data.index.annotations import CHUNK
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import NONE, Kind, Segments, join_runs, resolve


def orchestrator_folder(recording: int) -> str:
    """Returns where a recording's subtasks are, relative to the data set's root."""
    return f"orchestrators/task-{recording // CHUNK:04d}/episode_{recording:08d}"


def read_subtasks(index: EpisodeIndex) -> Segments:
    """Returns the subtasks of an index's episodes; an episode without a directory has none.

    Raises:
        ValueError: a directory's files are missing, no JSON or without a field, or a subtask has no length.
    """
    folders = [
        index.root / orchestrator_folder(number) if number != NONE else None for number in index.recordings.tolist()
    ]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        episodes = list(pool.map(lambda folder: _read_episode(folder) if folder else [], folders))
    kinds: dict[Kind, int] = {}
    runs = [(first, kinds.setdefault(Kind(text), len(kinds))) for episode in episodes for first, text in episode]
    table = np.array(runs, np.int64).reshape(-1, 2)
    counts = np.array([len(episode) for episode in episodes], np.int64)
    return join_runs(index, counts, table[:, 0], table[:, 1], tuple(kinds))


def _read_episode(folder: pathlib.Path) -> list[tuple[int, str]]:
    """Returns (first frame, text) of each run of an episode."""
    if not folder.is_dir():
        return []
    listed = _read(folder / "task_annotated.json", "cot_subtask_description_list")["cot_subtask_description_list"]
    paths = sorted(folder.glob("subtask_*_annotated.json"), key=_place)
    if len(paths) != len(listed):
        raise ValueError(f"{folder} lists {len(listed)} subtasks, but has {len(paths)} files of them; copy it again")
    durations, texts = [], []
    for path in paths:
        content = _read(path, "cot_subtask_description", "start_frame", "end_frame")
        start, end = int(content["start_frame"]), int(content["end_frame"])
        text = str(content["cot_subtask_description"]).strip()
        if not text or not 0 <= start < end:
            raise ValueError(f"{path} must have a text and 0 <= start_frame < end_frame; got {text!r}, {start}, {end}")
        durations.append((start, end, len(texts)))
        texts.append(text)
    return [(first, texts[what]) for first, what in resolve(durations)]


def _place(path: pathlib.Path) -> int:
    number = path.name.split("_")[1]
    if not number.isdecimal():
        raise ValueError(f"{path} must be named subtask_<number>_annotated.json")
    return int(number)


def _read(path: pathlib.Path, *fields: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing, so the episode's subtasks cannot be read; copy its directory again")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content
