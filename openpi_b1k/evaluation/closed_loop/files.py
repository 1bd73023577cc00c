"""What a rollout leaves in the output directory: its result, its video, and its recording."""

import contextlib
import pathlib
from typing import Any

import numpy as np

from openpi_b1k.config.data import Generation
from openpi_b1k.evaluation.closed_loop.environments import SampleEpisode
from openpi_b1k.rollouts import recordings, results, videos
from openpi_b1k.rollouts.results import Rollout

VIDEOS = "videos"
"""Of an output directory."""


class Files:
    """Takes one rollout's steps and writes its files."""

    def __init__(
        self, output_dir: pathlib.Path, episode: SampleEpisode, generation: Generation, *, video: bool, record: bool
    ) -> None:
        """Opens what is asked for.

        Args:
            output_dir: of all rollouts.
            episode: whose files these are.
            generation: of its proprio.
            video: write the composite of its cameras.
            record: keep all that was seen and done.

        Raises:
            FileExistsError: this rollout is recorded already.
        """
        self._output_dir = output_dir
        self._video_path = output_dir / VIDEOS / f"{episode.stem}.mp4"
        self._partial_video = self._video_path.with_name(f".{self._video_path.name}")
        self._recorder = None
        if record:
            directory = output_dir / recordings.FOLDER / episode.stem
            self._recorder = recordings.Recorder(directory, prompt=episode.prompt, generation=generation)
        self._video = videos.VideoWriter(self._partial_video) if video else None

    @property
    def wants_steps(self) -> bool:
        """Whether it is of use to add steps."""
        return self._video is not None or self._recorder is not None

    def add(self, observation: dict[str, Any], action: np.ndarray) -> None:
        """Takes what was seen, and the action executed then."""
        if self._video is not None:
            self._video.add(videos.composite(videos.camera_images(observation)))
        if self._recorder is not None:
            self._recorder.add(observation, action)

    def finish(self, rollout: Rollout) -> None:
        """Writes how it went; a rollout that was given up keeps its video, but no recording."""
        if self._video is not None:
            self._video.close()
            with contextlib.suppress(FileNotFoundError):  # it was given up before its first step
                self._partial_video.replace(self._video_path)
        if self._recorder is not None and rollout.failure_reason is None:
            self._recorder.close(rollout)
        elif self._recorder is not None:
            self._recorder.discard()
        results.write(self._output_dir, rollout)  # last: who finds it finds all

    def discard(self) -> None:
        """Removes what is not finished; of no effect after `finish`."""
        if self._video is not None:
            self._video.close()
            self._partial_video.unlink(missing_ok=True)
        if self._recorder is not None:
            self._recorder.discard()
