"""LeRobot v3.0: several episodes per parquet file and per mp4; tables in meta/episodes hold their addresses.

The 2026 challenge adds meta/tasks.jsonl with the tasks' sentences (its tables hold names only) and the column
raw_episode_id, after which annotations are named. A plain LeRobot data set has neither: its task texts are in
meta/tasks.parquet.
Source: LeRobot 0.4.4 `datasets/utils.py`; meta files of behavior-1k/2026-challenge-demos.
"""

import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.data.index.episodes import Video
from openpi_b1k.data.index.listing import UNKNOWN, Listing
from openpi_b1k.data.index.tasks import Task, known_task, read_tasks

REQUIRED = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index")
BY_VIDEO = ("chunk_index", "file_index", "from_timestamp")
OPTIONAL = ("task_index", "raw_episode_id")
TASK_NAME = re.compile(r"\w*_\w*")
"""What a task's name looks like, where a sentence is needed."""


def read_task_table(root: pathlib.Path) -> dict[int, Task]:
    """Returns {task index: task} of meta/tasks.jsonl, else of meta/tasks.parquet, whose text is name and prompt.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: tasks.parquet holds names, not sentences: a policy must not be told a name instead.
    """
    sentences = root / "meta/tasks.jsonl"
    table = root / "meta/tasks.parquet"
    if sentences.is_file() or not table.is_file():
        return read_tasks(sentences)
    tasks = {index: Task(index, text.strip(), text.strip()) for text, index in _task_texts(table).items()}
    named = [task.name for task in tasks.values() if TASK_NAME.fullmatch(task.name)]
    if named:
        raise ValueError(
            f"{table} holds task names ({', '.join(named[:3])}), not sentences, and there is no {sentences}, which "
            "holds them: download it; a copy of the 2026 challenge's data without it is from before 2026-07-27 and "
            "must be downloaded again"
        )
    return tasks


def read_listing(
    root: pathlib.Path, info: dict[str, Any], videos: tuple[Video, ...], tasks: dict[int, Task]
) -> Listing:
    """Returns the episodes of meta/episodes/**.parquet with the prompts of `tasks`.

    Raises:
        FileNotFoundError: there is no episode table.
        ValueError: a table lacks columns, or an episode's task is not listed.
    """
    table = _episode_table(root, videos)
    task_indices = _task_indices(root, table, tasks)

    def files(template: str, prefix: str, **key: str) -> list[str]:
        chunks, files = (table[f"{prefix}/{part}_index"].to_pylist() for part in ("chunk", "file"))
        pairs = list(zip(chunks, files, strict=True))
        names = {(c, f): template.format(chunk_index=c, file_index=f, **key) for c, f in set(pairs)}
        return [names[pair] for pair in pairs]

    data_files = files(info["data_path"], "data")
    video_files = [files(info["video_path"], f"videos/{video.key}", video_key=video.key) for video in videos]
    starts = [table[f"videos/{video.key}/from_timestamp"].to_numpy() for video in videos]
    recordings = np.full(len(table), UNKNOWN, np.int64)
    if "raw_episode_id" in table.column_names:
        recordings = table["raw_episode_id"].fill_null(UNKNOWN).to_numpy().astype(np.int64)
    return Listing(
        numbers=table["episode_index"].to_numpy().astype(np.int64),
        recordings=recordings,
        lengths=table["length"].to_numpy().astype(np.int64),
        tasks=np.array(task_indices, np.int64),
        prompts=[tasks[task].prompt for task in task_indices],
        data_files=data_files,
        first_rows=_first_rows(data_files, table["dataset_from_index"].to_numpy()),
        video_files=np.array(video_files, object).T,
        first_frames=np.rint(np.stack(starts, axis=1) * info["fps"]).astype(np.int64),
    )


def _first_rows(files: list[str], offsets: np.ndarray) -> np.ndarray:
    """Returns where episodes begin in their files, from their rows in the whole data set: the file's least is its 0."""
    _, ids = np.unique(np.array(files, object), return_inverse=True)
    firsts = np.full(ids.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(firsts, ids, offsets)
    return offsets - firsts[ids]


def _episode_table(root: pathlib.Path, videos: tuple[Video, ...]) -> pa.Table:
    """Returns the columns of meta/episodes/**.parquet that say where an episode lies, by episode number."""
    paths = sorted((root / "meta/episodes").glob("**/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no episode tables at {root / 'meta/episodes'}/**/*.parquet; download the meta/ too")
    required = [*REQUIRED, *(f"videos/{video.key}/{part}" for video in videos for part in BY_VIDEO)]
    tables = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            held = set(file.schema_arrow.names)
            missing = [name for name in required if name not in held]
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it is no v3.0 episode table")
            tables.append(file.read([*required, *(name for name in OPTIONAL if name in held)], use_threads=False))
    return pa.concat_tables(tables, promote_options="permissive").sort_by("episode_index")


def _task_indices(root: pathlib.Path, table: pa.Table, tasks: dict[int, Task]) -> list[int]:
    """Returns each episode's task index: its own column, else looked up by text in tasks.parquet or tasks.jsonl."""
    if "task_index" in table.column_names and not table["task_index"].null_count:
        indices = table["task_index"].to_pylist()
    else:
        by_text = {task.prompt: task.index for task in tasks.values()} | {t.name: t.index for t in tasks.values()}
        path = root / "meta/tasks.parquet"
        if path.is_file():
            by_text |= _task_texts(path)
        texts = table["tasks"].to_pylist()
        for number, held in zip(table["episode_index"].to_pylist(), texts, strict=True):
            if len(held) != 1:
                raise ValueError(
                    f"episode {number} of {root} has the tasks {held}; this reader takes one task per episode"
                )
        unknown = sorted({held[0] for held in texts if held[0] not in by_text})
        if unknown:
            raise ValueError(f"{root / 'meta/episodes'} has tasks that are not in {path}: {', '.join(unknown)}")
        indices = [by_text[held[0]] for held in texts]
    for task in set(indices):
        known_task(task, tasks, str(root / "meta/episodes"))
    return indices


def _task_texts(path: pathlib.Path) -> dict[str, int]:
    """Returns {text: task index} of a tasks.parquet; pandas keeps the texts in its index."""
    columns = pq.read_table(path).to_pydict()
    texts = columns.get("task") or columns.get("__index_level_0__")
    if texts is None or "task_index" not in columns:
        raise ValueError(f"{path} must have the columns task_index and task; it has {', '.join(columns)}")
    return dict(zip(texts, columns["task_index"], strict=True))
