"""Recorded episodes as environments: what was recorded is seen, step by step, whatever the policy does.

So nothing can be said of success. What is told: how far the actions are from the recorded ones, when a policy sees the
recorded course, and how quickly it answers, with the observations and messages that the evaluator would send.
"""

import dataclasses
import json
import pathlib

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import proprio_in_use
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.evaluation.closed_loop.ablations import unchanged
from openpi_b1k.evaluation.closed_loop.outcome import timing_line
from openpi_b1k.evaluation.closed_loop.play import play
from openpi_b1k.evaluation.closed_loop.players import Remote, Timings
from openpi_b1k.evaluation.closed_loop.served import served
from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.samples import choose_frames
from openpi_b1k.robots.chunk_errors import ErrorSums, step_errors
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving.tasks import TASK_NAMES

RUN = 16
"""Frames decoded at a time."""
MAX_AT_ONCE = 16
"""Environments of one message, which at the cameras' full size is 3.5 MB for each."""


class RecordedEpisode:
    """One recorded episode, from its window's first frame on."""

    def __init__(self, dataset: B1kDataset, frames: EpisodeFrames, row: int, max_steps: int | None = None) -> None:
        """Reads its columns.

        Args:
            dataset: where it is.
            frames: of the same episodes, at their own size.
            row: in the data set's index.
            max_steps: environment steps to play; default: all that the window has.
        """
        index = dataset.index
        self._frames, self._row, self._videos, self._robot = frames, row, index.videos, dataset.columns.robot
        number = int(index.tasks[row])
        self.task = index.task_names[number]
        self.prompt = index.prompts[int(index.prompt_ids[row])]
        self.episode = int(index.numbers[row])
        self._task_id = TASK_NAMES.index(self.task) if self.task in TASK_NAMES else number
        self._begin, end = int(index.begins[row]), int(index.ends[row])
        self.max_steps = end - self._begin if max_steps is None else min(max_steps, end - self._begin)
        proprio, actions = dataset.columns.episode(row)
        played = slice(self._begin, self._begin + self.max_steps)
        self._proprio = whole_proprio(proprio[played], dataset.columns.robot, index.proprio_size)
        self.recorded = np.array(actions[played])
        """float32 [steps, 23]"""
        self._executed: list[np.ndarray] = []
        self._seen: dict[str, np.ndarray] = {}
        self._seen_at = -1

    @property
    def is_over(self) -> bool:
        """Whether all its steps were played."""
        return len(self._executed) >= self.max_steps

    @property
    def executed(self) -> np.ndarray:
        """What the policy did, float32 [steps so far, 23]."""
        return np.array(self._executed, np.float32).reshape(-1, ACTION.size)

    def observation(self) -> dict[str, np.ndarray]:
        """Returns what was recorded at this step, under the evaluator's keys; after the end, the last one."""
        step = min(len(self._executed), self.max_steps - 1)
        if step != self._seen_at:
            self._seen, self._seen_at = self._read(step), step
        return self._seen

    def step(self, action: np.ndarray) -> None:
        """Takes what the policy would do, and goes on to the next recorded step."""
        self._executed.append(np.array(action, np.float32))

    def _read(self, step: int) -> dict[str, np.ndarray]:
        frame, end = self._begin + step, self._begin + self.max_steps
        run = range(frame, min(frame + RUN, end))
        seen = {"robot_r1::proprio": self._proprio[step], "task_id": np.array([self._task_id], np.int64)}
        for video, picture in zip(self._videos, self._frames.read(self._row, frame, run), strict=True):
            key = self._robot.camera(video.camera).simulator_name
            if video.modality == "rgb":
                opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
                seen[f"{key}::rgb"] = np.concatenate([picture, opaque], axis=-1)
            elif video.modality == "depth":
                seen[f"{key}::depth_linear"] = picture
        return seen


def whole_proprio(in_use: np.ndarray, robot: Robot, size: int) -> np.ndarray:
    """Returns the robot's whole vector, float32 [n, size]; entries that no state is made of are 0.

    Args:
        in_use: what column files hold, [n, entries in use].
        robot: knows where they belong.
        size: of the whole vector.
    """
    layout, given = robot.proprio(size), proprio_in_use(robot)
    whole = np.zeros((len(in_use), size), np.float32)
    for name in given.names:
        whole[:, layout.slice(name)] = in_use[:, given.slice(name)]
    return whole


@dataclasses.dataclass(frozen=True)
class RecordedResult:
    """How a policy answered to recorded episodes. Two are equal if it acted equally, however long it took."""

    policy: str
    notes: tuple[str, ...]
    """What a reader should know of the episodes."""
    episodes: tuple[dict[str, int | str | None], ...]
    """Of each: its number in the data set, task, steps played, and the failure_reason or None."""
    errors: dict[str, float]
    """Mean error of each field, see `chunk_errors.ErrorSums.named`; empty if no step was played."""
    timing: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict, compare=False)

    def report(self) -> str:
        """Returns the errors, the time, and how much was played as lines of text."""
        lines = [
            *self.notes,
            "Observations are the recorded ones whatever the policy does: nothing is said of success.",
        ]
        units = {field.name: field.unit for field in ACTION.fields}
        for name, error in self.errors.items():
            lines.append(f"  {name:24} {error:.4f} {units.get(name, 'of steps with the recorded decision')}")
        if self.timing:
            lines.append(timing_line(self.timing))
        given_up = [one for one in self.episodes if one["failure_reason"] is not None]
        lines += [f"episode {one['episode']} failed with {one['failure_reason']}" for one in given_up]
        steps = sum(int(one["steps"] or 0) for one in self.episodes)
        lines.append(f"recorded episodes: {len(self.episodes) - len(given_up)} of {len(self.episodes)}, {steps} steps")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns everything as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def play_recorded(
    checkpoint: pathlib.Path, settings: Settings, choice: DataChoice, max_steps: int | None = None
) -> RecordedResult:
    """Serves a checkpoint in this process, and shows it recorded episodes, spread evenly over the data set.

    Args:
        checkpoint: of any recipe with demonstrations.
        settings: how it is asked; its seed is of the sampling noise alone.
        choice: which episodes; by default those that the run's own split holds out.
        max_steps: of each episode; default: all.

    Raises:
        FileNotFoundError: checkpoint or data are not there.
        ValueError: a setting does not fit, or there is no episode to play.
    """
    config, info = contents.read_config(checkpoint), contents.read_info(checkpoint)
    if settings.ablate != "none" or settings.output_dir is not None or settings.generation is not None:
        raise ValueError(
            "recorded episodes know no success and no other proprio than their own: --ablate, --output-dir and "
            "--generation are for the sample world"
        )
    chosen = choose_frames(config, info, choice, count=1)
    frames = EpisodeFrames(chosen.index)
    num = len(chosen.index.numbers)
    rows = np.unique(np.linspace(0, num - 1, min(settings.episodes, num)).round().astype(int)).tolist()
    episodes = [RecordedEpisode(chosen.dataset, frames, row, max_steps) for row in rows]
    settings = dataclasses.replace(settings, num_envs=min(settings.num_envs, MAX_AT_ONCE), episodes=len(episodes))
    timings, failures, size = Timings(), [], settings.group_size(1)
    with served(checkpoint, settings) as endpoint, Remote([endpoint], unchanged, timings) as player:
        for start in range(0, len(episodes), size):
            group = episodes[start : start + size]
            failures += play(group, player, [None] * len(group))
    return RecordedResult(
        policy=str(checkpoint),
        notes=chosen.notes,
        episodes=tuple(
            {"episode": one.episode, "task": one.task, "steps": len(one.executed), "failure_reason": failure}
            for one, failure in zip(episodes, failures, strict=True)
        ),
        errors=_errors(episodes),
        timing=timings.percentiles(),
    )


def _errors(episodes: list[RecordedEpisode]) -> dict[str, float]:
    """Returns the mean error of each field over all steps."""
    executed = np.concatenate([one.executed for one in episodes])
    if not len(executed):
        return {}
    recorded = np.concatenate([one.recorded[: len(one.executed)] for one in episodes])
    errors = step_errors(ACTION, recorded[:, None], executed[:, None])
    named = ErrorSums.of(errors, np.ones((len(executed), 1), bool)).named(ACTION)
    return {name: error for name, error in named.items() if "/" not in name}  # a "chunk" here is one step
