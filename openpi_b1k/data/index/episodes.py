"""Where every sample lies: from a global sample index to an episode, its row and its frames."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable

import numpy as np

from openpi_b1k.config.data import Modality

BY_EPISODE = (
    "numbers", "recordings", "positions", "lengths", "begins", "ends", "tasks", "prompt_ids",
    "data_ids", "first_rows", "video_ids", "first_frames",
)  # fmt: skip
"""Fields of an EpisodeIndex that have an entry per episode."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One camera in one modality as the data set stores it."""

    camera: str
    modality: Modality
    key: str
    """The data set's name of the feature."""
    height: int
    width: int


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """The episodes of a data set as compact arrays; every frame of an episode's window is a sample.

    Axes: `e` episodes, `v` videos. An episode's frames are counted from 0; those of its window [begin, end) are used,
    and as far as training is concerned the episode ends there. Rows of this table are counted from 0; the data set's
    own episode numbers may be sparse and are only in `numbers`.
    """

    root: pathlib.Path
    fps: int
    proprio_size: int
    videos: tuple[Video, ...]
    numbers: np.ndarray
    """int64 [e]: the data set's own."""
    recordings: np.ndarray
    """int64 [e]: task * 10000 + instance * 10 + take, after which annotations are named; -1 where it is not told."""
    positions: np.ndarray
    """int64 [e]: place among all episodes of its task in the data set, by number."""
    lengths: np.ndarray
    """int64 [e]: rows, which are frames."""
    begins: np.ndarray
    """int64 [e]: first frame of the window that is used."""
    ends: np.ndarray
    """int64 [e]: end of that window, at most the length."""
    tasks: np.ndarray
    """int64 [e]: the data set's task index."""
    task_names: dict[int, str]
    prompts: tuple[str, ...]
    """Distinct prompts."""
    prompt_ids: np.ndarray
    """int64 [e]: which of them an episode has."""
    data_files: tuple[str, ...]
    """Distinct parquet files, relative to the root."""
    data_ids: np.ndarray
    """int64 [e]: which of them holds an episode's rows."""
    first_rows: np.ndarray
    """int64 [e]: the row of that file which is the episode's first."""
    video_files: tuple[str, ...]
    """Distinct video files, relative to the root."""
    video_ids: np.ndarray
    """int64 [e, v]: which of them shows an episode."""
    first_frames: np.ndarray
    """int64 [e, v]: the frame of that file which shows the episode's first row."""
    meta_digest: str
    """Hash of the meta files."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        return int(self.starts[-1])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Global index of each episode's first sample, and the number of samples: int64 [e + 1]."""
        return np.concatenate([[0], np.cumsum(self.ends - self.begins, dtype=np.int64)])

    def locate(self, i: int) -> tuple[int, int]:
        """Returns (row of this table, frame in the episode) of sample `i`.

        Raises:
            IndexError: `i` is negative or not below the number of samples.
        """
        if not 0 <= i < self.starts[-1]:
            raise IndexError(f"sample {i} is outside [0, {self.starts[-1]}) of {self.root}")
        episode = int(np.searchsorted(self.starts, i, side="right")) - 1
        return episode, i - int(self.starts[episode]) + int(self.begins[episode])

    def select(self, tasks: Iterable[int]) -> "EpisodeIndex":
        """Returns the index of those tasks' episodes alone."""
        return self.take(np.flatnonzero(np.isin(self.tasks, list(tasks))))

    def take(self, rows: np.ndarray) -> "EpisodeIndex":
        """Returns the index of those rows' episodes alone, in that order."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in BY_EPISODE})

    def prompts_by_task(self) -> dict[str, tuple[str, ...]]:
        """Returns the prompts in use by task name, commonest first; a data set may word one task in several ways."""
        prompts = {}
        for task in np.unique(self.tasks).tolist():
            ids, counts = np.unique(self.prompt_ids[self.tasks == task], return_counts=True)
            ids = ids[np.argsort(-counts, kind="stable")]
            prompts[self.task_names[task]] = tuple(self.prompts[i] for i in ids.tolist())
        return prompts

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the meta files and of the chosen episodes and windows, the same wherever the data set lies."""
        digest = hashlib.sha256(self.meta_digest.encode())
        for array in (self.numbers, self.lengths, self.begins, self.ends, self.tasks, self.first_frames):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        digest.update(repr([self.prompts[i] for i in self.prompt_ids.tolist()]).encode())
        return digest.hexdigest()[:32]
