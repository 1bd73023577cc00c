"""The skills of every episode and its valid window, from the data set's annotations/**.

What is awkward in these files, and the rule for each (all are counted):

split               a frame_duration that is a list of durations: each counts, for the same skill
no length           a duration that ends where it begins or before: left out
no description      a skill without one (empty, or None): left out
no duration         a frame_duration that is no pair of whole numbers: left out
no objects          an empty object_id: the prompt is the description alone
several skills      more than one description in a segment: the prompt joins them with "and"
overlaps, gaps      segments.py has the rules; gaps are counted with their frames
past the end        a skill that reaches beyond the episode's length: cut there
no skills           an episode whose file has no skill that is left
no file             an episode that has no file: allowed until a prompt or a weight needs it

Source: annotation files of behavior-1k/2025-challenge-demos and 2026-challenge-demos.
"""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import numpy as np

from openpi_b1k.data.index import annotation_cache
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import NONE, Kind, Segments, join_runs, resolve
from openpi_b1k.data.index.wording import skill_text

logger = logging.getLogger(__name__)

CHUNK = 10_000
IN_FILE: tuple[str, ...] = (
    "segments", "split", "no length", "no description", "no duration", "no objects", "several skills", "overlaps",
    "gaps", "gap frames",
)  # fmt: skip
"""What is counted in a file."""
IN_EPISODE = ("past the end", "no skills", "no file")
"""What is counted where files and index meet."""


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """What annotators said about the episodes of an index. Axis: `e` episodes, in the index's order."""

    skills: Segments
    windows: np.ndarray
    """int64 [e, 2]: valid_duration, first frame and end as they stand in the file; -1 where there is none."""
    durations: np.ndarray
    """int64 [e]: the episode's length as the annotation has it, -1 where it does not say."""
    last_ends: np.ndarray
    """int64 [e]: where the last skill ends, which may be past the episode's end; 0 without skills."""
    has_file: np.ndarray
    """bool [e]"""
    counts: dict[str, int]
    """How often each of IN_FILE and IN_EPISODE was met."""


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One file, with the rules applied that need no episode."""

    runs: list[tuple[int, Kind]]
    """(first frame, kind); the first begins at 0."""
    last_end: int
    window: tuple[int, int]
    duration: int
    counts: tuple[int, ...]
    """One for each of IN_FILE."""


def annotation_file(recording: int) -> str:
    """Returns where a recording's annotation is, relative to the data set's root."""
    return f"annotations/task-{recording // CHUNK:04d}/episode_{recording:08d}.json"


def read_annotations(index: EpisodeIndex) -> Annotations:
    """Returns the annotations of an index's episodes, and logs in one line what is awkward about them.

    Files are parsed once; later calls read compact arrays from the cache, until a file's size or time changes.

    Raises:
        ValueError: a file is not JSON, or not an annotation.
    """
    named = np.unique(index.recordings[index.recordings != NONE] // CHUNK * CHUNK)
    folders = [annotation_file(number).rpartition("/")[0] for number in named.tolist()]
    annotations = _join(index, annotation_cache.read_folders(index, folders, parse_file))
    logger.info("%s", describe(index, annotations))
    return annotations


def describe(index: EpisodeIndex, annotations: Annotations) -> str:
    """Returns what a log says of annotations, in one line."""
    counts = annotations.counts
    awkward = ", ".join(f"{counts[name]} {name}" for name in (*IN_FILE[1:], *IN_EPISODE) if counts[name])
    found = int(annotations.has_file.sum())
    return (
        f"annotations of {index.root}: {found} of {len(index.numbers)} episodes, {counts['segments']} skill segments"
        f"{f'; {awkward}' if awkward else ''}"
    )


def parse_file(path: pathlib.Path) -> Annotation:
    """Returns what an annotation file says.

    Raises:
        ValueError: it is not JSON, or not an annotation.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"{path} is not JSON: {error}; download it again") from error
    skills = content.get("skill_annotation") if isinstance(content, dict) else None
    if not isinstance(skills, list) or not all(isinstance(skill, dict) for skill in skills):
        raise ValueError(f"{path} has no list skill_annotation; it is no annotation of an episode: download it again")
    counts = dict.fromkeys(IN_FILE, 0)
    kinds: dict[Kind, int] = {}
    durations: list[tuple[int, int, int]] = []
    for skill in skills:
        kind, spans = _kind(skill, counts), _durations(skill.get("frame_duration"), counts)
        if kind is None or not spans:
            continue
        counts["no objects"] += not kind.objects
        counts["several skills"] += len(kind.skills) > 1
        what = kinds.setdefault(kind, len(kinds))
        durations += [(start, end, what) for start, end in spans]
    _count_gaps(durations, counts)
    counts["segments"] = len(durations)
    meta = content.get("meta_data")
    meta = meta if isinstance(meta, dict) else {}
    window = _pairs(meta.get("valid_duration"))
    duration = meta.get("task_duration")
    shown = tuple(kinds)
    return Annotation(
        runs=[(first, shown[what]) for first, what in resolve(durations)],
        last_end=max((end for _, end, _ in durations), default=0),
        window=window[0] if window is not None and len(window) == 1 else (NONE, NONE),
        duration=duration if isinstance(duration, int) else NONE,
        counts=tuple(counts[name] for name in IN_FILE),
    )


def _kind(skill: dict[str, Any], counts: dict[str, int]) -> Kind | None:
    """Returns what a segment shows, or None without a description."""
    described = skill.get("skill_description")
    described = described if isinstance(described, list) else [described]
    groups = skill.get("object_id")
    groups = groups if isinstance(groups, list) else [groups]
    if len(described) == 1:
        groups = [groups]
    named = [
        (name.strip(), _flat(groups[i] if i < len(groups) else []))
        for i, name in enumerate(described)
        if isinstance(name, str) and name.strip()
    ]
    if not named:
        counts["no description"] += 1
        return None
    return Kind(
        text=" and ".join(skill_text(name, objects) for name, objects in named),
        skills=tuple(name for name, _ in named),
        objects=tuple(dict.fromkeys(name for _, objects in named for name in objects)),
    )


def _flat(value: Any) -> tuple[str, ...]:
    """Returns the texts in nested lists, in order, without empty ones."""
    if isinstance(value, list):
        return tuple(text for part in value for text in _flat(part))
    return (value.strip(),) if isinstance(value, str) and value.strip() else ()


def _durations(value: Any, counts: dict[str, int]) -> list[tuple[int, int]]:
    """Returns the durations of a segment that have a length, cut at frame 0."""
    pairs = _pairs(value)
    if not pairs:
        counts["no duration"] += 1
        return []
    counts["split"] += len(pairs) > 1
    kept = [(max(start, 0), end) for start, end in pairs if end > max(start, 0)]
    counts["no length"] += len(pairs) - len(kept)
    return kept


def _pairs(value: Any) -> list[tuple[int, int]] | None:
    """Returns the pairs of whole numbers in nested lists, or None if there is anything else."""
    if not isinstance(value, list):
        return None
    is_whole = [isinstance(edge, int) or (isinstance(edge, float) and edge.is_integer()) for edge in value]
    if is_whole == [True, True]:
        return [(int(value[0]), int(value[1]))]
    parts = [_pairs(part) for part in value]
    if any(part is None for part in parts):
        return None
    return [pair for part in parts if part is not None for pair in part]


def _count_gaps(durations: list[tuple[int, int, int]], counts: dict[str, int]) -> None:
    """Counts frames between skills that none covers, and skills that begin before an earlier one has ended."""
    reached: int | None = None
    for start, end, _ in sorted(durations):
        if reached is not None:
            counts["overlaps"] += start < reached
            counts["gaps"] += start > reached
            counts["gap frames"] += max(0, start - reached)
        reached = end if reached is None else max(reached, end)


def _join(index: EpisodeIndex, parts: list[annotation_cache.Folder]) -> Annotations:
    """Returns the annotations of an index from those of whole folders."""
    size = len(index.numbers)
    windows, durations = np.full((size, 2), NONE, np.int64), np.full(size, NONE, np.int64)
    has_file, last_ends, numbers = np.zeros(size, bool), np.zeros(size, np.int64), np.zeros(size, np.int64)
    totals = np.zeros(len(IN_FILE), np.int64)
    row_of = {number: row for row, number in enumerate(index.recordings.tolist()) if number != NONE}
    kinds: dict[Kind, int] = {}
    runs = [np.zeros((0, 3), np.int64)]  # row, first frame, kind
    for part in parts:
        rows = np.array([row_of.get(number, NONE) for number in part.recordings.tolist()], np.int64)
        files = np.flatnonzero(rows != NONE)
        chosen = rows[files]
        has_file[chosen], windows[chosen], durations[chosen] = True, part.windows[files], part.durations[files]
        last_ends[chosen], numbers[chosen] = part.last_ends[files], np.diff(part.offsets)[files]
        totals += part.counts[files].sum(axis=0)
        ids = np.array([kinds.setdefault(kind, len(kinds)) for kind in part.kinds], np.int64)
        table = np.stack([np.repeat(rows, np.diff(part.offsets)), part.first, ids[part.kind_ids]], axis=1)
        runs.append(table[table[:, 0] != NONE])
    table = np.concatenate(runs)
    table = table[np.argsort(table[:, 0], kind="stable")]
    skills = join_runs(index, numbers, table[:, 1], table[:, 2], tuple(kinds))
    counts = dict(zip(IN_FILE, totals.tolist(), strict=True))
    counts["past the end"] = int((last_ends > index.lengths).sum())
    counts["no skills"] = int((has_file & (np.diff(skills.offsets) == 0)).sum())
    counts["no file"] = int((~has_file).sum())
    return Annotations(skills, windows, durations, last_ends, has_file, counts)
