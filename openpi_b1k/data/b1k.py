"""BEHAVIOR-1K demonstrations as samples: `dataset[i]` depends on i alone."""

import numpy as np

from openpi_b1k.data.columns import Columns
from openpi_b1k.data.episodes import EpisodeIndex
from openpi_b1k.data.frame_cache import EpisodeFrames
from openpi_b1k.transforms.base import Sample


class B1kDataset:
    """Every frame of every episode with the actions that follow it. Can be sent to worker processes."""

    def __init__(
        self, index: EpisodeIndex, action_size: int, action_horizon: int, image_size: int, frame_cache_gib: float = 0.0
    ) -> None:
        """Reads nothing yet.

        Args:
            index: of the data set.
            action_size: entries of an action.
            action_horizon: actions per sample.
            image_size: of the model; frames kept in memory have it.
            frame_cache_gib: memory for decoded frames; 0 decodes every time.
        """
        self.index = index
        self.columns = Columns(index, action_size)
        self._frames = EpisodeFrames(index, image_size, int(frame_cache_gib * 2**30))
        self._steps = np.arange(action_horizon)

    def __len__(self) -> int:
        """Returns the number of samples: frames of all episodes."""
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Returns the raw sample `i`.

        Its fields: `proprio` float32 [p]; `images` {camera: uint8 [h, w, 3]}; `prompt`; `actions` float32 [ah, 23], of
        which those past the episode's end repeat its last one; `is_pad` bool [ah], true for those; `episode` (the data
        set's number), `frame` in it, and `task` (the data set's number).

        Raises:
            IndexError: `i` is negative or not below the length.
            FileNotFoundError: a file is missing.
            ValueError: a file does not hold what the meta files promise.
        """
        index = self.index
        row, frame = index.locate(i)
        proprio, actions = self.columns.episode(row)
        steps = frame + self._steps
        last = len(actions) - 1
        return {
            "proprio": proprio[frame].copy(),
            "images": {video.camera: self._frames.image(row, c, frame) for c, video in enumerate(index.videos)},
            "prompt": index.prompts[index.prompt_ids[row]],
            "actions": actions[np.minimum(steps, last)],
            "is_pad": steps > last,
            "episode": int(index.numbers[row]),
            "frame": frame,
            "task": int(index.tasks[row]),
        }
