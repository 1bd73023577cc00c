"""Rollouts in, a data set to train on out: all of it or nothing."""

import dataclasses
import pathlib
import shutil
from typing import Literal

from openpi_b1k.curation.rollouts import write_rft
from openpi_b1k.curation.rollouts.gather import Gathered, Settings, counted, gather
from openpi_b1k.curation.rollouts.numbering import Entry, number, task_table
from openpi_b1k.data.index.tasks import Task

DataLayout = Literal["rft", "lerobot"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done."""

    gathered: Gathered
    entries: tuple[Entry, ...]
    output: pathlib.Path

    @property
    def text(self) -> str:
        """Lines for the terminal: what was found by task, then the sum."""
        frames = sum(entry.facts.length for entry in self.entries)
        return f"{counted(self.gathered)}\n{self.output}: {len(self.entries)} episodes, {frames} frames"


def import_rollouts(
    inputs: tuple[pathlib.Path, ...],
    output: pathlib.Path,
    settings: Settings,
    layout: DataLayout = "rft",
    tasks_of: pathlib.Path | None = None,
    workers: int = 0,
) -> Report:
    """Writes the rollouts below some directories as a data set, which appears at `output` when it is whole.

    Args:
        inputs: directories of evaluations' output, searched to any depth.
        output: the data set's root; must not be there.
        settings: which rollouts, and what of them.
        layout: openpi-comet's RFT layout (LeRobot v2.1), or LeRobot v3.0 by lerobot's own writer.
        tasks_of: root of the data set whose task list names and numbers the tasks; needed for openpi-comet's rollouts.
        workers: processes that copy and encode (layout rft); 0: this one.

    Raises:
        FileExistsError: there is something at `output`.
        FileNotFoundError: an input is not there, or holds no rollout.
        ModuleNotFoundError: layout lerobot, and lerobot is not installed.
        ValueError: the rollouts cannot be used; see `gather`, `number` and `task_table`.
    """
    if output.exists():
        raise FileExistsError(f"{output} is already there; choose another --output, or delete it")
    gathered = gather(inputs, settings)
    tasks, path = task_table(gathered.episodes, tasks_of)
    entries = number(gathered.episodes, tasks, path)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial, entries, tasks, layout, workers)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(gathered, tuple(entries), output)


def write(root: pathlib.Path, entries: list[Entry], tasks: dict[int, Task], layout: DataLayout, workers: int) -> None:
    """Writes a data set in one of the layouts; see `import_rollouts`."""
    if layout == "rft":
        write_rft.write(root, entries, tasks, workers)
        return
    try:
        from openpi_b1k.curation.rollouts import write_lerobot  # noqa: PLC0415  # needs an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--layout lerobot needs lerobot ({error}); install it with `uv sync --extra lerobot`, or take --layout rft"
        ) from error
    write_lerobot.write(root, entries)
