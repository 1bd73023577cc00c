"""BEHAVIOR-1K demonstrations as samples: `dataset[i]` depends on i alone."""

from collections.abc import Sequence

import numpy as np

from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import Segments
from openpi_b1k.data.prompts import PromptSource
from openpi_b1k.transforms.base import Sample


class BadSampleError(ValueError):
    """A sample that cannot be read: says which task, episode, frame and file."""


class B1kDataset:
    """Every frame of every episode's window with the actions that follow it. Can be sent to worker processes."""

    def __init__(
        self,
        index: EpisodeIndex,
        columns: Columns,
        frames: EpisodeFrames,
        skills: Segments | None,
        prompts: PromptSource,
        action_horizon: int,
    ) -> None:
        """Reads nothing yet.

        Args:
            index: of the data set, after trimming and splitting.
            columns: of the same index.
            frames: of the same index.
            skills: of the same index, for the labels of segmentation and for the field `skill`; None: there are none.
            prompts: of the same index.
            action_horizon: actions per sample.

        Raises:
            ValueError: segmentation is read, but an episode has no skills to say which objects count.
        """
        if any(video.modality == "segmentation" for video in index.videos):
            check_skills(index, skills)
        self.index = index
        self.columns = columns
        self.frames = frames
        self.prompts = prompts
        self.skills = skills
        self._steps = np.arange(action_horizon)

    def __len__(self) -> int:
        """Returns the number of samples: frames of all episodes' windows."""
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Returns the raw sample `i`; see `get`."""
        return self.get(i)

    def get(self, i: int, run: Sequence[int] | np.ndarray | None = None) -> Sample:
        """Returns the raw sample `i`.

        Its fields: `proprio` float32 [25]; `images` {camera: uint8 [h, w, 3]}; `depth` {camera: float32 [h, w]} in
        metres and `segmentation` {camera: uint8 [h, w]}, labels 0 to 8, where the index has them; `prompt`; `skill`,
        the one under way with its objects, "" where none is known; `actions` float32 [ah, 23], of which those past the
        window's end repeat its last one; `is_pad` bool [ah], true for those; `episode` (the data set's number),
        `frame` in it, and `task` (the data set's number).

        Args:
            i: in [0, length).
            run: ascending samples of one episode, `i` among them, that are best decoded together and will be asked
                for soon with the same run. Changes nothing but the time it takes.

        Raises:
            IndexError: `i` is negative or not below the length.
            BadSampleError: a file is missing or does not hold what the meta files promise.
        """
        index = self.index
        row, frame = index.locate(i)
        frames_of_run = None if run is None else [frame + int(other) - i for other in run]
        try:
            proprio, actions = self.columns.episode(row)
            pictures = self.frames.read(row, frame, frames_of_run)
            extra = self._modalities(row, frame, pictures)
        except (ValueError, OSError) as error:
            raise BadSampleError(
                f"sample {i} cannot be read (task {index.task_names[int(index.tasks[row])]}, episode "
                f"{index.numbers[row]}, frame {frame}): {error}"
            ) from error
        steps, last = frame + self._steps, int(index.ends[row]) - 1
        return {
            "proprio": proprio[frame].copy(),
            **extra,
            "prompt": self.prompts(row, frame),
            "skill": "" if self.skills is None else self.skills.text(row, frame),
            "actions": actions[np.minimum(steps, last)],
            "is_pad": steps > last,
            "episode": int(index.numbers[row]),
            "frame": frame,
            "task": int(index.tasks[row]),
        }

    def _modalities(self, row: int, frame: int, pictures: Sequence[np.ndarray]) -> Sample:
        """Returns the pictures by modality and camera."""
        extra: Sample = {"images": {}}
        for place, (video, picture) in enumerate(zip(self.index.videos, pictures, strict=True)):
            if video.modality == "rgb":
                extra["images"][video.camera] = picture
            elif video.modality == "depth":
                extra.setdefault("depth", {})[video.camera] = picture
            else:
                kind = None if self.skills is None else self.skills.kind_at(row, frame)
                labels = self.frames.instances(row, place).labels(() if kind is None else kind.objects)
                extra.setdefault("segmentation", {})[video.camera] = labels[picture]
        return extra


def check_skills(index: EpisodeIndex, skills: Segments | None) -> None:
    """Raises ValueError if an episode has no skill: its objects are what segmentation labels."""
    lacking = index.numbers if skills is None else index.numbers[np.diff(skills.offsets) == 0]
    if len(lacking):
        named = ", ".join(str(number) for number in lacking[:5].tolist())
        raise ValueError(
            f"segmentation labels the objects of the skill under way, but {len(lacking)} of {len(index.numbers)} "
            f"episodes of {index.root} have no annotations ({named}{', ...' if len(lacking) > 5 else ''}); download "
            "annotations/, choose other episodes, or leave segmentation out of --data.modalities"
        )
