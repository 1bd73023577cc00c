"""What the meta files of a format say about each episode, before it is an EpisodeIndex."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from openpi_b1k.data.index.episodes import EpisodeIndex, Video
from openpi_b1k.data.index.tasks import Task

PROPRIO = "observation.state"
ACTION = "action"
UNKNOWN = -1
"""Recording number of an episode whose data set does not tell it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """Values by episode, in order of the data set's own numbers. Axes: `e` episodes, `v` videos."""

    numbers: np.ndarray
    """int64 [e]"""
    recordings: np.ndarray
    """int64 [e]: task * 10000 + instance * 10 + take, which names the annotation; or UNKNOWN."""
    lengths: np.ndarray
    """int64 [e]"""
    tasks: np.ndarray
    """int64 [e]"""
    prompts: list[str]
    data_files: list[str]
    first_rows: np.ndarray
    """int64 [e]"""
    video_files: np.ndarray
    """str [e, v]"""
    first_frames: np.ndarray
    """int64 [e, v]"""


def positions_by_task(tasks: np.ndarray) -> np.ndarray:
    """Returns each episode's position among its task's, int64 [e], for tasks [e] listed in order of episode number."""
    order = np.argsort(tasks, kind="stable")
    grouped = tasks[order]
    firsts = np.flatnonzero(np.diff(grouped, prepend=grouped[:1] - 1))
    counts = np.diff(np.append(firsts, len(tasks)))
    positions = np.empty(len(tasks), np.int64)
    positions[order] = np.arange(len(tasks)) - np.repeat(firsts, counts)
    return positions


def to_index(
    root: pathlib.Path,
    info: dict[str, Any],
    videos: tuple[Video, ...],
    tasks: dict[int, Task],
    listing: Listing,
    meta_digest: str,
) -> EpisodeIndex:
    """Returns the index of a listing, with texts and file names kept once.

    Raises:
        ValueError: an episode has no rows, or a number stands for two episodes.
    """
    numbers, lengths = listing.numbers, listing.lengths
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"episode {numbers[lengths.argmin()]} of {root} has length {lengths.min()}")
    repeated = numbers[1:][np.diff(numbers) == 0]
    if len(repeated):
        raise ValueError(f"the meta files of {root} list episode {repeated[0]} more than once; download meta/ again")
    texts, prompt_ids = np.unique(np.array(listing.prompts, object), return_inverse=True)
    data, data_ids = np.unique(np.array(listing.data_files, object), return_inverse=True)
    shown, video_ids = np.unique(listing.video_files.astype(object), return_inverse=True)
    return EpisodeIndex(
        root=root,
        fps=round(info["fps"]),
        proprio_size=int(info["features"][PROPRIO]["shape"][0]),
        videos=videos,
        numbers=numbers,
        recordings=listing.recordings,
        positions=positions_by_task(listing.tasks),
        lengths=lengths,
        begins=np.zeros_like(lengths),
        ends=lengths,
        tasks=listing.tasks,
        task_names={task.index: task.name for task in tasks.values()},
        prompts=tuple(texts.tolist()),
        prompt_ids=prompt_ids,
        data_files=tuple(data.tolist()),
        data_ids=data_ids,
        first_rows=listing.first_rows,
        video_files=tuple(shown.tolist()),
        video_ids=video_ids.reshape(listing.video_files.shape),
        first_frames=listing.first_frames,
        meta_digest=meta_digest,
    )
