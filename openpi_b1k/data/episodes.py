"""Where every sample lies: from a global sample index to an episode, its row and its frames."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Video:
    """One camera as the data set stores it."""

    camera: str
    key: str
    """The data set's name of the feature."""
    height: int
    width: int


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """The episodes of a data set as compact arrays; every frame of every episode is a sample.

    Axes: `e` episodes, `c` cameras. Rows of this table are counted from 0; the data set's own episode numbers may be
    sparse and are only in `numbers`.
    """

    root: pathlib.Path
    fps: int
    proprio_size: int
    videos: tuple[Video, ...]
    numbers: np.ndarray
    """int64 [e]: the data set's own."""
    lengths: np.ndarray
    """int64 [e]: rows, which are samples."""
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
    video_files: tuple[str, ...]
    """Distinct video files, relative to the root."""
    video_ids: np.ndarray
    """int64 [e, c]: which of them shows an episode."""
    first_frames: np.ndarray
    """int64 [e, c]: the frame of that file which shows the episode's first row."""
    meta_digest: str
    """Hash of the meta files."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        return int(self.starts[-1])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Global index of each episode's first sample, and the number of samples: int64 [e + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def locate(self, i: int) -> tuple[int, int]:
        """Returns (row of this table, frame in the episode) of sample `i`.

        Raises:
            IndexError: `i` is negative or not below the number of samples.
        """
        if not 0 <= i < self.starts[-1]:
            raise IndexError(f"sample {i} is outside [0, {self.starts[-1]}) of {self.root}")
        episode = int(np.searchsorted(self.starts, i, side="right")) - 1
        return episode, i - int(self.starts[episode])

    def select(self, tasks: Iterable[int]) -> "EpisodeIndex":
        """Returns the index of those tasks' episodes alone."""
        rows = np.flatnonzero(np.isin(self.tasks, list(tasks)))
        by_episode = ("numbers", "lengths", "tasks", "prompt_ids", "data_ids", "video_ids", "first_frames")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in by_episode})

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
        """Hash of the meta files and of the chosen episodes, the same wherever the data set lies."""
        digest = hashlib.sha256(self.meta_digest.encode())
        for array in (self.numbers, self.lengths, self.tasks, self.first_frames):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        digest.update(repr([self.prompts[i] for i in self.prompt_ids.tolist()]).encode())
        return digest.hexdigest()[:32]
