"""The policies of a server: one, or one per group of tasks of which one at a time is in memory."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import r1pro

logger = logging.getLogger(__name__)


class Acting(Protocol):
    """What a server needs of a policy, stage by stage, so that it can time them and isolate their failures."""

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Returns one camera's image at the model's size, which `prepare` then leaves as it is. Called as that is."""
        ...

    def prepare(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Returns a raw sample as the model's input. Called from several threads."""
        ...

    def predict(self, inputs: list[dict[str, Any]]) -> np.ndarray:
        """Returns the model's chunks [n, ah, ad], when they are computed. Called from one thread."""
        ...

    def finish(self, chunk: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Returns a chunk in the robot's units, float32 [ah, action size]."""
        ...


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is known of a policy while it is not in memory."""

    name: str
    prompts: Mapping[str, str]
    """Task name -> the prompt it was trained with, in the order of the tasks' numbers."""
    source: SourceConfig
    """The data it was trained on: cameras and modalities it wants."""
    robot: Robot
    action_horizon: int


class Policies:
    """Gives the policy of a task. `get` belongs to one thread."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        load: Callable[[str], Acting],
        names_by_task: Mapping[str, str] | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            profiles: by name.
            load: from a name to the policy, ready to act: compiled for the batch sizes it will see.
            names_by_task: task name -> name of its policy; without it, there is one policy for all.
        """
        self._profiles = dict(profiles)
        self._load = load
        self._names_by_task = names_by_task
        self._current: tuple[str, Acting] | None = None

    def profile(self, task: str | None) -> Profile:
        """Returns who acts in a task.

        Raises:
            ValueError: no policy is for that task, or which of several is not said.
        """
        if self._names_by_task is None:
            return next(iter(self._profiles.values()))
        if task is None:
            raise ValueError("this server has checkpoints by task: send a task_id with the observation")
        if task not in self._names_by_task:
            raise ValueError(f"no checkpoint is for task {task!r}; there are some for {', '.join(self._names_by_task)}")
        return self._profiles[self._names_by_task[task]]

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Of all policies."""
        return tuple(self._profiles.values())

    @property
    def prompts(self) -> dict[str, str]:
        """Task name -> prompt, of all policies."""
        return {task: prompt for profile in self._profiles.values() for task, prompt in profile.prompts.items()}

    def get(self, name: str) -> Acting:
        """Returns the policy called `name`, which then is the only one in memory."""
        if self._current is None or self._current[0] != name:
            if self._current is not None:
                logger.info("from policy %s to %s", self._current[0], name)
            self._current = None  # frees its memory before the other one needs it
            self._current = (name, self._load(name))
        return self._current[1]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which checkpoint acts in which tasks."""

    paths: dict[str, pathlib.Path]
    """Name -> checkpoint directory."""
    names_by_task: dict[str, str] | None = None
    """Task name -> name; None: there is one checkpoint, for all tasks."""


def read_profile(name: str, checkpoint: pathlib.Path) -> Profile:
    """Returns what a checkpoint directory says of its policy, without reading its weights.

    Raises:
        FileNotFoundError: it is no checkpoint, or not all of one.
        ValueError: it is not of this version.
    """
    config, assets = contents.read_config(checkpoint), contents.read_assets(checkpoint)
    robot = r1pro(config.data.transforms.state_layout)
    return Profile(name, assets.prompts, config.data, robot, config.model.action_horizon)


def open_policies(assignment: Assignment, load: Callable[[pathlib.Path], Acting]) -> Policies:
    """Returns the policies of checkpoint directories; their weights are read when one is needed.

    Raises:
        FileNotFoundError: a directory is no checkpoint, or not all of one.
        ValueError: a checkpoint is not of this version, or does not know a task it is to act in.
    """
    profiles = {name: read_profile(name, path) for name, path in assignment.paths.items()}
    for task, name in (assignment.names_by_task or {}).items():
        if task not in profiles[name].prompts:
            raise ValueError(f"checkpoint {name!r} is to act in task {task!r}, on which it was not trained")
    return Policies(profiles, lambda name: load(assignment.paths[name]), assignment.names_by_task)


def read_assignment(path: pathlib.Path) -> Assignment:
    """Returns what a JSON file assigns: {"checkpoints": {NAME: {"path": DIRECTORY, "tasks": [TASK NAME, ...]}}}.

    Directories that are not absolute are relative to the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or a task twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoints by task at {path}")
    try:
        checkpoints = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
        paths = {name: path.parent / entry["path"] for name, entry in checkpoints.items()}
        tasks = [(task, name) for name, entry in checkpoints.items() for task in entry["tasks"]]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} must hold {{"checkpoints": {{NAME: {{"path": DIRECTORY, "tasks": [TASK NAME, ...]}}}}}}; '
            f"{type(error).__name__}: {error}"
        ) from error
    repeated = sorted({task for task, _ in tasks if [name for name, _ in tasks].count(task) > 1})
    if repeated or not paths:
        raise ValueError(f"{path} must name at least one checkpoint, and each task once; repeated: {repeated}")
    return Assignment(paths, dict(tasks))
