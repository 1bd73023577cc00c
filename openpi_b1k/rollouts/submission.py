"""A submission to the challenge: the rollouts of one policy, each once, as the evaluator wrote them.

`<track>.<testset>.<team>.<affiliation>.<date>/` with `json/<task>_<instance>_<rollout>.json`, which the official
scorer reads, and beside them the wrapper (.py), the robot's file (.yaml) and a README (.md). Files are copied byte by
byte: the rules forbid any change to what the evaluator wrote.
Source: BEHAVIOR-1K, docs/challenge/submission and OmniGibson/omnigibson/{learning,eval}/utils/score_utils.py.
"""

import dataclasses
import pathlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from openpi_b1k.config.data import Generation
from openpi_b1k.rollouts import results, scores
from openpi_b1k.rollouts.evaluator_commands import FIRST_INSTANCE, Testset, public_instances_2025
from openpi_b1k.rollouts.results import Rollout

Track = Literal["standard", "privileged"]

_NAME = re.compile(r"[\w-]+")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in the zip, so that the same files make the same zip."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Rollouts and the files they were read from, in the same order."""

    rollouts: tuple[Rollout, ...]
    paths: tuple[pathlib.Path, ...]


def counted(
    tasks: Sequence[str],
    *,
    generation: Generation,
    testset: Testset,
    instances: int | None = None,
    test_instances: pathlib.Path | None = None,
) -> dict[str, Collection[int] | None]:
    """Returns which instances of each task the official scorer counts; None where any would be.

    Args:
        tasks: all of the generation, by number.
        generation: of the evaluator.
        testset: whose instances.
        instances: per task, counted from the first; default: as the shipped scorer has it.
        test_instances: 2025's `test_instances.csv`; without it, any of 2025 count.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table is none, or `instances` is more than there are.
    """
    most = scores.INSTANCES[generation]
    count = most if instances is None else instances
    if not 1 <= count <= most:
        raise ValueError(f"{generation} has {most} {testset} instances of a task; {count} cannot be counted")
    if generation == "2026":
        first = FIRST_INSTANCE[testset]
        return dict.fromkeys(tasks, range(first, first + count))
    if testset == "hidden" or test_instances is None:
        return dict.fromkeys(tasks)
    ids = public_instances_2025(test_instances)
    return {task: ids.get(task, [])[:count] for task in tasks}


def find(
    directories: Sequence[pathlib.Path], *, generation: Generation, instances: Mapping[str, Collection[int] | None]
) -> Found:
    """Returns the rollouts of some output directories of the evaluator, ordered by task, instance and rollout.

    Args:
        directories: each what was given to the evaluator as `--output-dir` (2026) or `log_path` (2025).
        generation: all are of.
        instances: those that count, by task, see `counted`.

    Raises:
        FileNotFoundError: a directory has no rollouts.
        ValueError: a file is no rollout or not of this generation, a rollout is there twice or not one that counts.
    """
    found: dict[tuple[str, int, int], tuple[Rollout, pathlib.Path]] = {}
    for directory in directories:
        folder = results.folder(directory)
        if folder.name != results.FOLDERS[generation]:
            raise ValueError(f"{directory} has {folder.name}/, which is not of {generation}; set --generation")
        for path in sorted(folder.glob("*.json")):
            rollout = results.read(path)
            if rollout.key in found:
                raise ValueError(
                    f"{rollout.stem} is there twice, in {found[rollout.key][1]} and {path}; to choose one of two after "
                    f"seeing them is cherry-picking, so collect the one that was decided on before"
                )
            if reason := _does_not_count(rollout, instances):
                raise ValueError(f"{path}: {reason}")
            found[rollout.key] = rollout, path
    if not found:
        raise FileNotFoundError(f"no rollout in {', '.join(map(str, directories))}")
    ordered = [found[key] for key in sorted(found)]
    return Found(tuple(one[0] for one in ordered), tuple(one[1] for one in ordered))


def _does_not_count(rollout: Rollout, instances: Mapping[str, Collection[int] | None]) -> str | None:
    """Returns why the official scorer would refuse a rollout, or None."""
    if rollout.task not in instances:
        return f"the challenge has no task {rollout.task!r} among its {len(instances)}"
    if rollout.rollout_id != 0:
        return "an instance is played once, as rollout 0; more are not counted"
    allowed = instances[rollout.task]
    if allowed is not None and rollout.instance_id not in allowed:
        return f"instance {rollout.instance_id} is none of the {len(allowed)} that count: {sorted(allowed)}"
    return None


def name(*, track: Track, testset: Testset, team: str, affiliation: str, date: str, generation: Generation) -> str:
    """Returns the name of the submission's folder; the scorer shows `_` as a space.

    Raises:
        ValueError: a part would be read as two, or this generation has no such track.
    """
    if generation == "2026" and track == "privileged":
        raise ValueError("2026 has one track, standard: no privileged information at test time")
    parts = [track, testset, team.replace(" ", "_"), affiliation.replace(" ", "_"), date]
    for what, part in zip(("track", "testset", "team", "affiliation", "date"), parts, strict=True):
        if not _NAME.fullmatch(part):
            raise ValueError(f"{what} {part!r} must be letters, digits, '-', '_' and spaces; a dot would end it")
    return ".".join(parts)


def write(output: pathlib.Path, folder: str, found: Found, extras: Sequence[pathlib.Path]) -> pathlib.Path:
    """Writes the submission's folder beside `output`, and `output`, a zip of it; both whole or neither.

    Args:
        output: of the zip.
        folder: name of the submission's folder.
        found: rollouts to submit.
        extras: wrapper, robot file and README, checked by `check_extras`.

    Returns:
        The folder's path.

    Raises:
        FileExistsError: the zip or the folder is there.
        ValueError: see `check_extras`; or `output` is no name of a zip.
    """
    check_extras(extras)
    if output.suffix != ".zip":
        raise ValueError(f"{output} is no name of a zip; end it in .zip")
    target = output.parent / folder
    for path in (output, target):
        if path.exists():
            raise FileExistsError(f"{path} is there; move it away, a submission is not written over another")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as unfinished:
        content = pathlib.Path(unfinished) / folder
        (content / "json").mkdir(parents=True)
        for path in found.paths:
            shutil.copyfile(path, content / "json" / path.name)
        for path in extras:
            shutil.copyfile(path, content / path.name)
        packed = pathlib.Path(unfinished) / "zip"
        _pack(content, packed)
        content.rename(target)
        packed.rename(output)
    return target


def check_extras(extras: Sequence[pathlib.Path]) -> None:
    """Refuses a submission without the files that the rules ask for beside the rollouts.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a kind is missing, a file is empty, or two have the same name.
    """
    for path in extras:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path} to submit")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty")
    names = [path.name for path in extras]
    if len(set(names)) < len(names):
        raise ValueError(f"files of the same name would replace each other: {sorted(names)}")
    for what, suffixes in (("wrapper", {".py"}), ("robot's file", {".yaml", ".yml"}), ("README", {".md"})):
        if not any(path.suffix in suffixes for path in extras):
            raise ValueError(f"a submission has a {what} ({' or '.join(sorted(suffixes))}); got {sorted(names)}")


def without_video(found: Found) -> list[str]:
    """Returns the names of rollouts without a video beside them; the rules ask for a link to every one."""
    return [path.stem for path in found.paths if not (path.parent.parent / "videos" / f"{path.stem}.mp4").is_file()]


def _pack(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Writes a zip of a folder, whose name it keeps."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(str(path.relative_to(folder.parent)), _ZIP_DATE)
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
