"""Tasks of a data set: number, name and the sentence the policy is told."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of meta/tasks.jsonl."""

    index: int
    name: str
    prompt: str
    """Empty where the file has none; whoever needs it must refuse then."""


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where it stands, content) of each line that is not blank.

    Raises:
        ValueError: a line is not a JSON object.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(content, dict):
                raise ValueError(f"{path}:{number} must be a JSON object; got {line.strip()[:80]}")
            yield f"{path}:{number}", content


def read_tasks(path: pathlib.Path) -> dict[int, Task]:
    """Returns {task index: task} of a meta/tasks.jsonl.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line lacks the number or the name, or repeats one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no task list at {path}; it names the tasks and holds their prompts: download it with the data set's meta/"
        )
    tasks: dict[int, Task] = {}
    for where, line in read_json_lines(path):
        missing = [key for key in ("task_index", "task_name") if key not in line]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(line)}")
        task = Task(int(line["task_index"]), line["task_name"], (line.get("task") or "").strip())
        if task.index in tasks or task.name in {known.name for known in tasks.values()}:
            raise ValueError(f"{where} repeats task {task.index} or {task.name!r}; each may be listed once")
        tasks[task.index] = task
    return tasks


def known_task(task: int, tasks: dict[int, Task], where: str) -> Task:
    """Returns the task of that index.

    Raises:
        ValueError: it is not listed; says who belongs to it.
    """
    if task not in tasks:
        raise ValueError(f"{where} belongs to task {task}, which meta/tasks.jsonl does not list")
    return tasks[task]


def task_numbers(names: Iterable[str], tasks: dict[int, Task], path: pathlib.Path) -> list[int]:
    """Returns the indices of the named tasks.

    Raises:
        ValueError: a name is unknown; says which is near.
    """
    by_name = {task.name: task.index for task in tasks.values()}
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known tasks: {', '.join(by_name)}"
            raise ValueError(f"no task {name!r} in {path}; {hint}")
    return [by_name[name] for name in names]
