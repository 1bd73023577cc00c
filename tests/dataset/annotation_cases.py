"""Annotated episodes of the tests of the data room, without videos or rows."""

import json
import pathlib

import numpy as np

from openpi_b1k.data.index.annotations import annotation_file
from openpi_b1k.data.index.episodes import EpisodeIndex

SKILLS = [("move to", [0, 40], [["radio_89"]]), ("press", [40, 100], [["radio_89"]])]


def make_index(root: pathlib.Path, lengths: dict[int, int], meta_digest: str = "f" * 64) -> EpisodeIndex:
    """Returns an index of {episode number: length}; numbers are recordings as in 2025."""
    numbers = np.array(list(lengths), np.int64)
    sizes = np.array(list(lengths.values()), np.int64)
    zeros = np.zeros(len(numbers), np.int64)
    return EpisodeIndex(
        root=root,
        fps=30,
        proprio_size=256,
        videos=(),
        numbers=numbers,
        recordings=numbers,
        positions=zeros,
        lengths=sizes,
        begins=zeros,
        ends=sizes,
        tasks=numbers // 10_000,
        task_names={task: f"task_{task}" for task in range(100)},
        prompts=tuple(f"Do task {task}." for task in range(100)),
        prompt_ids=numbers // 10_000,
        data_files=("data.parquet",),
        data_ids=zeros,
        first_rows=zeros,
        video_files=(),
        video_ids=np.zeros((len(numbers), 0), np.int64),
        first_frames=np.zeros((len(numbers), 0), np.int64),
        meta_digest=meta_digest,
    )


def write_annotation(root: pathlib.Path, recording: int, skills=SKILLS, **meta) -> pathlib.Path:
    """Writes an annotation of (description, duration, objects) and returns its path."""
    path = root / annotation_file(recording)
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "skill_idx": i,
            "skill_description": description if isinstance(description, list) else [description],
            "frame_duration": duration,
            "object_id": objects,
        }
        for i, (description, duration, objects) in enumerate(skills)
    ]
    path.write_text(json.dumps({"task_name": "a", "meta_data": meta, "skill_annotation": listed}))
    return path
