"""Whether a data set is whole and right: a map over its files whose parts add up, and what all parts say together."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tqdm

from openpi_b1k.curation import audit_meta, audit_rows, audit_videos, findings
from openpi_b1k.curation.contents import Contents, episodes_of_files, read_contents
from openpi_b1k.curation.findings import Finding
from openpi_b1k.data.index.revision import read_revision
from openpi_b1k.data.shards import Shard
from openpi_b1k.robots.layout import Layout
from openpi_b1k.robots.r1pro import ACTION, PROPRIO_IN_USE

Videos = Literal["none", "ends", "all"]
LAYOUTS: dict[str, Layout] = {"state": PROPRIO_IN_USE, "action": ACTION}
CONSTANT = 1e-6
"""A range of values that is none."""
IDLE_FRAMES = 30
"""Idle frames at an episode's ends that are worth telling, together."""
NUM_EXAMPLES = 12
"""Frames in a report."""
EXAMPLES_BY_VIDEO = 2
VideoOutcome = tuple[list[Finding], dict[str, str] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What an audit found: of a shard, or of all."""

    about: dict[str, Any]
    """root, generation, meta_digest, revision, episodes, frames, fps, videos (which frames were decoded), shards."""
    findings: list[Finding]
    statistics: dict[str, dict[str, Any]]
    """By group, "state" (entries in use) and "action": see audit_rows."""
    idle: list[tuple[int, int, int]]
    """(episode, idle frames at its start, at its end)."""
    lengths: list[tuple[int, int]]
    """(episode, frames) of all episodes."""
    annotations: dict[str, int]
    """How often each awkward case occurs."""
    examples: list[dict[str, str]]
    """Frames: {"caption", "jpeg" (base64)}."""

    def to_json(self) -> str:
        """Returns it as JSON, which `from_json` reads."""
        values = dataclasses.asdict(self) | {"findings": [finding.to_json() for finding in self.findings]}
        return json.dumps(values, indent=1, allow_nan=False)


def from_json(text: str) -> Report:
    """Returns the report that `to_json` wrote.

    Raises:
        ValueError: it is another file.
    """
    try:
        values = json.loads(text)
        values["findings"] = [findings.from_json(value) for value in values["findings"]]
        return Report(**values)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"this is no report of an audit: {error!r}") from error


def run(root: pathlib.Path, tasks: Sequence[str], videos: Videos, shard: Shard, num_workers: int) -> Report:
    """Returns what is found in a shard's part of a data set, under a progress bar.

    Args:
        root: of the data set.
        tasks: names; none means all that are there.
        videos: what is decoded of them: nothing, the first and last frame of each file, or every frame.
        shard: the part of the files and annotations.
        num_workers: processes; 0 works in this one.

    Raises:
        FileNotFoundError: there is no data set at `root`.
        ValueError: its meta files cannot be read.
    """
    contents = read_contents(root, tasks)
    index = contents.index
    missing, there = audit_meta.find_missing(contents, is_chosen=bool(tasks))
    found, annotated = audit_meta.audit_annotations(contents, np.array(shard.take(range(len(index.lengths))), int))
    if shard.number == 0:
        found += [*missing, *audit_meta.audit_prompts(contents), *audit_meta.audit_revision(contents, there)]
    statistics: dict[str, dict[str, Any]] = {}
    idle, examples = [], []
    for outcome in _each(contents, _files(contents, there, videos, shard), num_workers):
        if isinstance(outcome, audit_rows.RowsPart):
            found += outcome.findings
            idle += outcome.idle
            for name, values in outcome.statistics.items():
                statistics[name] = audit_rows.add_statistics(statistics.get(name), values)
        else:
            found += outcome[0]
            examples += [outcome[1]] if outcome[1] else []
    about = {
        "root": str(root),
        "generation": contents.generation,
        "meta_digest": index.meta_digest[:32],
        "revision": str(read_revision(index)),
        "episodes": len(index.lengths),
        "frames": int(index.lengths.sum()),
        "fps": index.fps,
        "videos": videos,
        "shards": [str(shard)],
    }
    lengths = list(zip(index.numbers.tolist(), index.lengths.tolist(), strict=True))
    return Report(about, found, statistics, idle, lengths, annotated, examples[:NUM_EXAMPLES])


def merge(parts: Sequence[Report]) -> Report:
    """Returns what all shards found together, and what only shows in the whole.

    Raises:
        ValueError: they are of different data sets or checks, or a shard is missing or there twice.
    """
    about = parts[0].about
    for key in ("meta_digest", "episodes", "videos"):
        held = {part.about[key] for part in parts}
        if len(held) > 1:
            raise ValueError(f"these reports are of different audits: {key} is {', '.join(map(str, sorted(held)))}")
    shards = [shard for part in parts for shard in part.about["shards"]]
    count = int(shards[0].partition("/")[2])
    expected = [str(Shard(number, count)) for number in range(count)]
    if sorted(shards) != sorted(expected):
        raise ValueError(f"a report needs each of the shards {', '.join(expected)} once; got {', '.join(shards)}")
    statistics: dict[str, dict[str, Any]] = {}
    annotated: dict[str, int] = {}
    for part in parts:
        for name, values in part.statistics.items():
            statistics[name] = audit_rows.add_statistics(statistics.get(name), values)
        for name, value in part.annotations.items():
            annotated[name] = annotated.get(name, 0) + value
    whole = Report(
        about={**about, "shards": expected},
        findings=[finding for part in parts for finding in part.findings],
        statistics=statistics,
        idle=[(number, start, end) for part in parts for number, start, end in part.idle],
        lengths=parts[0].lengths,
        annotations=annotated,
        examples=[example for part in parts for example in part.examples][:NUM_EXAMPLES],
    )
    return dataclasses.replace(whole, findings=[*whole.findings, *_overall(whole)])


def entry_names(group: str) -> list[str]:
    """Returns the names of a group's entries: "action.torso[3]"."""
    return [f"{group}.{field.name}[{i}]" for field in LAYOUTS[group].fields for i in range(field.size)]


def _overall(report: Report) -> list[Finding]:
    found = []
    for group, values in report.statistics.items():
        for name, low, high in zip(entry_names(group), values["min"], values["max"], strict=True):
            if high - low <= CONSTANT:
                found.append(Finding("constant entry", "all rows", f"{name} is {low:g} throughout"))
    long = [(start, end) for _, start, end in report.idle if start + end > IDLE_FRAMES]
    if long:
        starts, ends = np.sum(long, axis=0)
        found.append(
            Finding(
                "idle ends", "episodes", f"{len(long)} have {starts} idle frames at the start and {ends} at the end"
            )
        )
    awkward = {name: count for name, count in report.annotations.items() if count and name != "segments"}
    if awkward:
        text = ", ".join(f"{count} {name}" for name, count in awkward.items())
        total = report.annotations.get("segments", 0)
        found.append(Finding("awkward annotations", "annotations", f"of {total} skill segments: {text}"))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    """One file to audit."""

    name: str
    rows: np.ndarray
    """Of the index, whose episodes it holds."""
    video: int | None = None
    """Which of the index's videos it shows; None: it is parquet."""
    decode_all: bool = False
    with_example: bool = False


def _files(contents: Contents, there: set[str], videos: Videos, shard: Shard) -> list[_File]:
    """Returns what a shard audits."""
    index = contents.index
    order = np.argsort(index.data_ids, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(index.data_ids[order])) + 1) if len(order) else []
    files = [_File(index.data_files[index.data_ids[rows[0]]], rows) for rows in groups]
    if videos != "none":
        for v in range(len(index.videos)):
            for i, (name, rows) in enumerate(episodes_of_files(index, v).items()):
                files.append(_File(name, rows, v, decode_all=videos == "all", with_example=i < EXAMPLES_BY_VIDEO))
    return shard.take([file for file in files if file.name in there])


def _audit(contents: Contents, file: _File) -> audit_rows.RowsPart | VideoOutcome:
    if file.video is None:
        return audit_rows.audit_file(contents, file.name, file.rows)
    return audit_videos.audit_file(
        contents, file.video, file.name, file.rows, decode_all=file.decode_all, with_example=file.with_example
    )


def _each(contents: Contents, files: list[_File], num_workers: int) -> Iterator[audit_rows.RowsPart | VideoOutcome]:
    """Yields what each file shows, in order, under a progress bar."""
    with tqdm.tqdm(total=len(files), desc="audit", unit=" files", disable=None) as bar:
        if not num_workers:
            for file in files:
                yield _audit(contents, file)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (contents,)) as pool:
            for outcome in pool.map(_audit_in_worker, files):
                yield outcome
                bar.update()


_of_worker: list[Contents] = []
"""The data set that this worker process audits: sent once, as the index of a whole release has some MB."""


def _start_worker(contents: Contents) -> None:
    _of_worker.append(contents)


def _audit_in_worker(file: _File) -> audit_rows.RowsPart | VideoOutcome:
    return _audit(_of_worker[0], file)
