"""What the policy is told at a frame: the task, the skill under way, or the subtask."""

import dataclasses

import numpy as np

from openpi_b1k.config.data import PromptLevel
from openpi_b1k.data.index.annotations import Annotations, annotation_file
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.orchestrators import orchestrator_folder, read_subtasks
from openpi_b1k.data.index.segments import NONE, Segments, named_episodes


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSource:
    """Prompts by row of an index and frame of the episode. Picklable: workers hold the same small arrays."""

    index: EpisodeIndex
    segments: Segments | None
    """Whose texts are the prompts; None for the task's sentence."""

    def __call__(self, row: int, frame: int) -> str:
        """Returns the prompt of a frame."""
        if self.segments is None:
            return self.index.prompts[self.index.prompt_ids[row]]
        return self.segments.text(row, frame)

    def wordings(self) -> dict[str, tuple[str, ...]]:
        """Returns every prompt by task name, that of most frames first."""
        if self.segments is None:
            return self.index.prompts_by_task()
        segments, tasks = self.segments, self.index.tasks[self.segments.rows]
        frames = segments.stop - segments.first
        prompts = {}
        for task in np.unique(self.index.tasks).tolist():
            totals = np.bincount(segments.kind_ids[tasks == task], frames[tasks == task], len(segments.kinds))
            order = np.argsort(-totals, kind="stable")
            texts = (segments.kinds[kind].text for kind in order.tolist() if totals[kind])
            prompts[self.index.task_names[task]] = tuple(dict.fromkeys(texts))
        return prompts


def open_prompts(index: EpisodeIndex, level: PromptLevel, annotations: Annotations) -> PromptSource:
    """Returns the prompts of a level: 0 the task's sentence, 1 the skill with its objects, 2 the subtask.

    Args:
        index: of the data set, after trimming and splitting.
        level: of the config.
        annotations: of the index's episodes, and perhaps of more.

    Raises:
        ValueError: an episode has no prompt of that level.
    """
    if level == 0:
        return PromptSource(index, None)
    if level == 1:
        segments = annotations.skills.of(index)
        needed = "skills, which are in annotations/"
    else:
        segments = read_subtasks(index)
        needed = "subtasks, which are in openpi-comet's orchestrators/ and no part of the public data sets"
    lacking = np.flatnonzero(np.diff(segments.offsets) == 0)
    if len(lacking):
        first = int(index.recordings[lacking[0]])
        path = annotation_file(first) if level == 1 else orchestrator_folder(first)
        where = "its meta files have no raw_episode_id to find them by" if first == NONE else f"such as {path}"
        raise ValueError(
            f"--data.prompt-level {level} needs {needed}; {len(lacking)} of {len(index.numbers)} chosen episodes of "
            f"{index.root} have none ({where}): {named_episodes(index, lacking)}. Copy them there "
            "(scripts/download_dataset.py), choose other episodes with --data.tasks or --data.episodes, or give "
            "--data.prompt-level 0"
        )
    return PromptSource(index, segments)
