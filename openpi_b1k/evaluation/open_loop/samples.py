"""The frames that are looked at: evenly spread over episodes, and read as training reads them."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from openpi_b1k.checkpoints.contents import CheckpointInfo
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.order.spread import choose
from openpi_b1k.data.prompts import open_prompts
from openpi_b1k.data.sources import Demonstrations, open_demonstrations
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample import demos
from openpi_b1k.transforms.base import Sample

NO_SKILL = "(not annotated)"


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenFrames:
    """The frames of a data set that are looked at. Axis: `n` frames, by episode and then in time."""

    dataset: B1kDataset
    numbers: np.ndarray
    """int64 [n]: which samples of the data set."""
    rows: np.ndarray
    """int64 [n]: the episode's row in the data set's index."""
    notes: tuple[str, ...]
    """What a reader should know of them, a sentence or two each."""

    @property
    def index(self) -> EpisodeIndex:
        """The episodes of the split."""
        return self.dataset.index

    @property
    def tasks(self) -> list[str]:
        """The task's name of each frame."""
        return [self.index.task_names[int(self.index.tasks[row])] for row in self.rows]

    @property
    def skills(self) -> list[str]:
        """What each frame shows, without its objects: "pick up from"; of several skills, joined with "and"."""
        named = []
        for number in self.numbers.tolist():
            kind = None if self.dataset.skills is None else self.dataset.skills.kind_at(*self.index.locate(number))
            named.append(NO_SKILL if kind is None else " and ".join(kind.skills) or kind.text)
        return named

    def read(self, place: int) -> tuple[Sample, np.ndarray | None]:
        """Returns the raw sample at a place in [0, n) and the action before it, [a]; None at an episode's frame 0.

        Raises:
            BadSampleError: a file is missing or does not hold what the meta files promise.
        """
        sample = self.dataset.get(int(self.numbers[place]))
        _, actions = self.dataset.columns.episode(int(self.rows[place]))
        frame = sample["frame"]
        return sample, actions[frame - 1] if frame else None


def choose_frames(config: TrainConfig, info: CheckpointInfo, choice: DataChoice, count: int) -> ChosenFrames:
    """Returns about `count` frames, spread evenly over the episodes and each episode's window.

    Only the main source of a mixture is looked at: its statistics are what the policy acts with.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: they do not fit the config, a task is unknown, or there is no episode to look at.
    """
    if count < 1:
        raise ValueError(f"at least one frame must be looked at; got {count}")
    source = _source(config, choice)
    found = open_demonstrations(source, r1pro(source.transforms.state_layout))
    index = found.validation if choice.split == "held-out" else found.index
    if choice.tasks:
        index = index.select(_task_numbers(choice.tasks, index))
    if not len(index):
        raise ValueError(
            f"the run's split holds out no episode of {found.index.root}; give --data.split training to look at what "
            "it was trained on"
        )
    places = choose([index.starts], [1.0], count)
    return ChosenFrames(
        dataset=_dataset(source, found, index, config),
        numbers=np.asarray([place.index for place in places]),
        rows=np.asarray([place.row for place in places]),
        notes=tuple(_notes(config, info, choice, found)),
    )


def _source(config: TrainConfig, choice: DataChoice) -> SourceConfig:
    """Returns the run's main source with what the choice changes."""
    if config.data.source == "random":
        raise ValueError(
            "the checkpoint was trained on random numbers, so no demonstrations can be compared with; choose a "
            "checkpoint of another recipe"
        )
    root = config.data.root if choice.root is None else str(choice.root)
    source = dataclasses.replace(config.data, root=root, generation=choice.generation or config.data.generation)
    return demos.ensure(dataclasses.replace(config, data=source)).data


def _task_numbers(names: Sequence[str], index: EpisodeIndex) -> list[int]:
    """Returns the data set's numbers of tasks, which must have episodes in the index."""
    known = {index.task_names[task]: task for task in np.unique(index.tasks).tolist()}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"task {name!r} has no episode to look at; the chosen episodes of {index.root} are of "
                f"{', '.join(known) or 'no task'}.{hint}"
            )
    return [known[name] for name in names]


def _dataset(source: SourceConfig, found: Demonstrations, index: EpisodeIndex, config: TrainConfig) -> B1kDataset:
    """Returns the frames of some of the episodes that were opened, each decoded by itself."""
    return B1kDataset(
        index,
        Columns(index, r1pro(source.transforms.state_layout)),
        EpisodeFrames(index, config.model.image_size),
        found.annotations.skills.of(index),
        open_prompts(index, source.prompt_level, found.annotations),
        config.model.action_horizon,
    )


def _notes(config: TrainConfig, info: CheckpointInfo, choice: DataChoice, found: Demonstrations) -> list[str]:
    notes = []
    trained_on = next((source.fingerprint for source in info.sources if source.name == config.data.name), None)
    if trained_on != found.index.fingerprint:
        notes.append(
            f"The data at {found.index.root} are not those of the run (fingerprint {found.index.fingerprint}, the "
            f"run's {trained_on}): the run's rule of what is held out is applied to them, and whether training saw "
            "these episodes elsewhere is not known."
        )
    if choice.split == "training":
        notes.append("These are episodes of the training split: they show what was learned by heart, too.")
    if config.data.extra_sources:
        names = ", ".join(source.name for source in config.data.extra_sources)
        notes.append(f"The run is a mixture; only its main source is looked at, and not {names}.")
    return notes
