"""Which number, task and prompt each imported rollout gets."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from openpi_b1k.curation.rollouts.episode import Episode, Facts
from openpi_b1k.data.index.annotations import CHUNK
from openpi_b1k.data.index.tasks import Task, read_tasks, task_numbers


@dataclasses.dataclass(frozen=True)
class Entry:
    """A rollout with its place in the new data set."""

    number: int
    """Task number x 10,000 + how many of the task come before it, as openpi-comet numbers rollouts."""
    task: Task
    prompt: str
    """What the policy was told; the task's sentence where the recording does not say."""
    episode: Episode
    facts: Facts


def number(episodes: Sequence[tuple[Episode, Facts]], tasks: dict[int, Task], path: pathlib.Path) -> list[Entry]:
    """Returns the rollouts with their numbers, by number.

    Args:
        episodes: in order of task name.
        tasks: by index; all that the rollouts may be of.
        path: where they were read, for messages.

    Raises:
        ValueError: a task is not in the table (names the nearest), nothing tells its prompt, or it has more rollouts
            than numbers.
    """
    entries: list[Entry] = []
    counts: collections.Counter[int] = collections.Counter()
    for episode, facts in episodes:
        (index,) = task_numbers([episode.task], tasks, path)
        prompt = episode.prompt or tasks[index].prompt
        if not prompt:
            raise ValueError(f"{path} has no prompt of {episode.task!r}, and {episode.directory} does not tell it")
        if counts[index] == CHUNK:
            raise ValueError(f"task {episode.task!r} has more than {CHUNK} rollouts; import them into two data sets")
        entries.append(Entry(index * CHUNK + counts[index], tasks[index], prompt, episode, facts))
        counts[index] += 1
    return sorted(entries, key=lambda entry: entry.number)


def task_table(
    episodes: Sequence[tuple[Episode, Facts]], tasks_of: pathlib.Path | None
) -> tuple[dict[int, Task], pathlib.Path]:
    """Returns the tasks by index and where they come from: a data set's meta/tasks.jsonl, else the recordings.

    Args:
        episodes: recordings tell their tasks' names and sentences.
        tasks_of: root of the demonstrations, whose numbers and sentences are taken.

    Raises:
        FileNotFoundError: `tasks_of` has no task list.
        ValueError: a recording does not tell its sentence, so that a table is needed.
    """
    if tasks_of is not None:
        path = tasks_of / "meta/tasks.jsonl"
        return read_tasks(path), path
    prompts: dict[str, collections.Counter[str]] = {}
    for episode, _ in episodes:
        if episode.prompt is None:
            raise ValueError(
                f"{episode.directory} does not tell what the policy was told; give the demonstrations whose task list "
                "does, with --tasks-of DIR"
            )
        prompts.setdefault(episode.task, collections.Counter())[episode.prompt] += 1
    tasks = {i: Task(i, name, prompts[name].most_common(1)[0][0]) for i, name in enumerate(sorted(prompts))}
    return tasks, episodes[0][0].directory
