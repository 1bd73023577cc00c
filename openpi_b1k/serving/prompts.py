"""What the policy is told: a fixed text, the client's, a schedule's, or the one its task was trained with."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping

from openpi_b1k.serving.tasks import TASK_NAMES


@dataclasses.dataclass(frozen=True)
class Entry:
    """One prompt of a schedule."""

    until_step: int | None
    """The first environment step, counted from the episode's start, at which it no longer holds; None: never."""
    prompt: str


Schedule = Mapping[str, tuple[Entry, ...]]
"""Task name -> its prompts in order."""


@dataclasses.dataclass(frozen=True)
class PromptBook:
    """Chooses prompts. What comes first in this order wins."""

    fixed: str | None = None
    """For every environment, whatever else is said."""
    schedule: Schedule = dataclasses.field(default_factory=dict)
    """After what a client says, and before the checkpoint's own prompts."""

    def prompt(self, task: str | None, from_client: str | None, step: int, trained: Mapping[str, str]) -> str:
        """Returns what to tell the policy at an environment step.

        Args:
            task: name of the task, where the client gave its number.
            from_client: the prompt the client sent.
            step: environment steps since the episode's start.
            trained: task name -> prompt it was trained with.

        Raises:
            ValueError: nothing says what the policy is to do.
        """
        if self.fixed is not None:
            return self.fixed
        if from_client is not None:
            return from_client
        if task is None:
            raise ValueError(
                "nothing says what to do: send a task_id or a prompt with the observation, or start the server with "
                "--prompt"
            )
        if task in self.schedule:
            return next(
                entry.prompt for entry in self.schedule[task] if entry.until_step is None or step < entry.until_step
            )
        if task not in trained:
            raise ValueError(
                f"the policy was not trained on task {task!r}, so it has no prompt for it; it knows "
                f"{', '.join(trained)}; send a prompt, or start the server with --prompt or --schedule"
            )
        return trained[task]


def task_name(task_id: int, trained: Mapping[str, str]) -> str:
    """Returns the name of the task with that number.

    The numbers are the challenge's; of a checkpoint that knows none of its tasks, as those of the sample world do not,
    they are positions in its own list.

    Raises:
        ValueError: no task has that number.
    """
    names = TASK_NAMES if not trained or any(name in TASK_NAMES for name in trained) else tuple(trained)
    if not 0 <= task_id < len(names):
        raise ValueError(f"task_id must be in [0, {len(names) - 1}]; got {task_id}")
    return names[task_id]


def read_schedule(path: pathlib.Path) -> Schedule:
    """Returns the schedule in a JSON file: {task name: [{"until_step": 120, "prompt": "..."}, ...]}.

    A prompt holds while the environment's step is below its `until_step`; the last one's is null.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no schedule; says what is wrong with which task.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no schedule of prompts at {path}")
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(tasks, dict):
        raise ValueError(f"{path} must map task names to lists of prompts; got a {type(tasks).__name__}")
    return {name: _entries(name, entries, path) for name, entries in tasks.items()}


def _entries(task: str, entries: object, path: pathlib.Path) -> tuple[Entry, ...]:
    if task not in TASK_NAMES and (close := difflib.get_close_matches(task, TASK_NAMES, n=1)):
        raise ValueError(f"{path}: no task {task!r}; did you mean {close[0]!r}?")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: {task} needs a list of at least one prompt")
    read = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"until_step", "prompt"}:
            raise ValueError(f'{path}: {task} must list {{"until_step": ..., "prompt": ...}}; got {entry}')
        if not isinstance(entry["prompt"], str) or not entry["prompt"].strip():
            raise ValueError(f"{path}: a prompt of {task} is empty or no text: {entry}")
        read.append(Entry(entry["until_step"], entry["prompt"]))
    steps = [entry.until_step for entry in read[:-1]]
    are_numbers = all(type(step) is int for step in steps)
    if read[-1].until_step is not None or not are_numbers or steps != sorted({*steps}) or min(steps, default=1) < 1:
        raise ValueError(
            f"{path}: until_step of {task} must rise from 1 on, and be null in the last entry; got "
            f"{[entry.until_step for entry in read]}"
        )
    return tuple(read)
