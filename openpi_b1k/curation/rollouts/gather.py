"""Finds rollouts below some directories, and sorts out failures, duplicates and broken ones."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from openpi_b1k.curation.rollouts import comet, recorded
from openpi_b1k.curation.rollouts.episode import Episode, Facts, look_into
from openpi_b1k.rollouts.recordings import FACTS_FILE, PARTIAL


class Kind(Protocol):
    """A way in which rollouts are recorded: `recorded` and `comet`."""

    def find(self, root: pathlib.Path) -> list[pathlib.Path]:
        """Returns the directories of rollouts below `root`."""
        ...

    def read(self, directory: pathlib.Path, task: str | None, skipped_frames: int | None) -> Episode:
        """Returns the rollout in one of them."""
        ...


KINDS: tuple[Kind, ...] = (recorded, comet)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which rollouts are wanted, and what of them."""

    only_success: bool = True
    """Leave out rollouts that failed. False keeps them, as episodes like any other."""
    skip_first: int | None = None
    """Frames left out at the beginning of each rollout; default: 15 of openpi-comet's, as its own conversion does, and
    none of ours."""
    task: str | None = None
    """Name of the task of openpi-comet's rollouts beside which no cfg*.out tells it."""
    skip_broken: bool = False
    """Leave out rollouts that cannot be read, instead of writing nothing."""

    def __post_init__(self) -> None:
        if self.skip_first is not None and self.skip_first < 0:
            raise ValueError(f"skip_first must not be negative; got {self.skip_first}")


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was found."""

    episodes: tuple[tuple[Episode, Facts], ...]
    """By task name, then in the order of the directories given."""
    failures: tuple[Episode, ...]
    """Left out because they failed."""
    duplicates: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    """(left out, the one it is equal to)"""
    broken: tuple[tuple[pathlib.Path, str], ...]
    """(directory, what is wrong with it)"""


def gather(inputs: Iterable[pathlib.Path], settings: Settings) -> Gathered:
    """Returns the rollouts below `inputs`, each looked into; nothing is written.

    Two rollouts are the same if their rows are, whatever their names and places: evaluations with different seeds give
    the same numbers to different rollouts.

    Raises:
        FileNotFoundError: a directory is not there, or no rollout is below it.
        ValueError: no rollout is left, some are broken and `skip_broken` is not set, or robots or images differ.
    """
    failures, duplicates, broken = [], [], []
    found: dict[str, tuple[Episode, Facts]] = {}
    for kind, directory in locate(inputs):
        try:
            episode = kind.read(directory, settings.task, settings.skip_first)
            if settings.only_success and not episode.success:
                failures.append(episode)
                continue
            facts = look_into(episode)
        except (ValueError, OSError) as error:
            broken.append((directory, str(error)))
            continue
        if facts.digest in found:
            duplicates.append((directory, found[facts.digest][0].directory))
        else:
            found[facts.digest] = (episode, facts)
    gathered = Gathered(
        episodes=tuple(sorted(found.values(), key=lambda pair: pair[0].task)),
        failures=tuple(failures),
        duplicates=tuple(duplicates),
        broken=tuple(broken),
    )
    refuse(gathered, settings)
    return gathered


def locate(inputs: Iterable[pathlib.Path]) -> Iterator[tuple[Kind, pathlib.Path]]:
    """Yields (who recorded it, its directory) of each rollout below `inputs`, once; unfinished ones are left out.

    Raises:
        FileNotFoundError: a directory is not there, or no rollout is below it.
    """
    seen = set()
    for root in inputs:
        if not root.is_dir():
            raise FileNotFoundError(f"no directory {root}; --input must be the directory of an evaluation's output")
        found = [
            (kind, directory) for kind in KINDS for directory in kind.find(root) if not directory.name.endswith(PARTIAL)
        ]
        if not found:
            raise FileNotFoundError(
                f"no finished rollout below {root}: looked for **/{FACTS_FILE} (evaluate.py closed-loop --record) "
                f"and **/{comet.FOLDER}/*/{comet.ROWS} (openpi-comet's script)"
            )
        for kind, directory in found:
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield kind, directory


def refuse(gathered: Gathered, settings: Settings) -> None:
    """Raises ValueError where nothing may be written: some are broken, none is left, or they do not fit together."""
    if gathered.broken and not settings.skip_broken:
        raise ValueError(
            f"{len(gathered.broken)} rollouts cannot be used: {named(gathered.broken)}; remove them, or leave them out "
            "with --skip-broken"
        )
    if not gathered.episodes:
        raise ValueError(
            f"no rollout is left: {len(gathered.failures)} failed and {len(gathered.broken)} are broken; with "
            "--no-only-success failed ones are kept, too"
        )
    for name in ("proprio_size", "image_sizes"):
        by_value = {getattr(facts, name): episode.directory for episode, facts in gathered.episodes}
        if len(by_value) > 1:
            first, second = list(by_value.items())[:2]
            raise ValueError(
                f"rollouts of one data set must have the same {name.replace('_', ' ')}; {first[1]} has {first[0]}, "
                f"{second[1]} has {second[0]}: import them into two"
            )


def named(broken: Iterable[tuple[pathlib.Path, str]]) -> str:
    """Returns broken rollouts with what is wrong, as text."""
    return "; ".join(f"{directory}: {reason}" for directory, reason in broken)


def counted(gathered: Gathered) -> str:
    """Returns what was found, as lines of text: for each task the rollouts and frames kept, then what was left out."""
    kept, frames = collections.Counter(), collections.Counter()
    for episode, facts in gathered.episodes:
        kept[episode.task] += 1
        frames[episode.task] += facts.length
    failed = collections.Counter(episode.task for episode in gathered.failures)
    lines = [
        f"{task}: {kept[task]} episodes, {frames[task]} frames; failed and left out: {failed[task]}"
        for task in sorted({*kept, *failed})
    ]
    lines += [f"left out, the same as {first}: {second}" for second, first in gathered.duplicates]
    lines += [f"left out, broken: {named([one])}" for one in gathered.broken]
    return "\n".join(lines)
