"""What meta files, annotations and the copy's origin say, apart from rows and frames."""

import pathlib

import numpy as np
import pyarrow as pa

from openpi_b1k.curation import audit_rows
from openpi_b1k.curation.contents import Contents
from openpi_b1k.curation.findings import Finding
from openpi_b1k.data.index import revision
from openpi_b1k.data.index.annotations import IN_FILE, annotation_file, parse_file
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.listing import ACTION, PROPRIO, UNKNOWN
from openpi_b1k.robots.r1pro import r1pro


class Rows:
    """Proprio in use and actions by episode, straight from parquet."""

    def __init__(self, index: EpisodeIndex) -> None:
        """Reads nothing yet."""
        self._index = index

    def episode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns proprio in use [n, 25] and actions [n, 23]."""
        index = self._index
        table = audit_rows.read(index.root / index.data_files[index.data_ids[row]])
        table = table.slice(int(index.first_rows[row]), int(index.lengths[row]))
        proprio = audit_rows.vectors(table, PROPRIO)
        layout = r1pro("like_action").proprio(proprio.shape[1])
        return audit_rows.in_use(proprio, layout), audit_rows.vectors(table, ACTION)


def find_missing(contents: Contents, *, is_chosen: bool) -> tuple[list[Finding], set[str]]:
    """Returns findings about files that are not there, and all files that are.

    A task without any parquet file was not downloaded, unless it was asked for; nor were depth or segmentation of a
    task without any file of that video. All else that is missing is missed.

    Args:
        contents: of the data set.
        is_chosen: its tasks were named.
    """
    index, root = contents.index, contents.root
    there = {file for file in {*index.data_files, *index.video_files} if (root / file).is_file()}
    findings, absent = [], []
    for task in np.unique(index.tasks).tolist():
        rows = np.flatnonzero(index.tasks == task)
        files = {index.data_files[i] for i in index.data_ids[rows]}
        if not is_chosen and not files & there:
            absent.append(contents.tasks[task].name)
            continue
        findings += [Finding("missing file", file, "parquet") for file in sorted(files - there)]
        for v, video in enumerate(index.videos):
            files = {index.video_files[i] for i in index.video_ids[rows, v]}
            if video.modality != "rgb" and not files & there:
                absent.append(f"{video.key} of {contents.tasks[task].name}")
            else:
                findings += [Finding("missing file", file, "video") for file in sorted(files - there)]
    if len(absent) == len(np.unique(index.tasks)) and not there:
        findings.append(Finding("missing file", "data", "none of the files that meta/ names is there"))
    if absent:
        findings.append(Finding("not downloaded", "tasks and videos", ", ".join(absent)))
    return findings, there


def audit_prompts(contents: Contents) -> list[Finding]:
    """Returns the tasks that have episodes but no prompt."""
    prompts = contents.index.prompts_by_task()
    return [Finding("no prompt", "meta", f"task {name}") for name, texts in prompts.items() if "" in texts]


def audit_annotations(contents: Contents, rows: np.ndarray) -> tuple[list[Finding], dict[str, int]]:
    """Returns what is wrong with the annotations of those rows' episodes, and how often each awkward case occurs."""
    index, findings = contents.index, []
    counts = dict.fromkeys((*IN_FILE, "past the end", "odd valid_duration"), 0)
    for row in rows.tolist():
        number, recording, length = int(index.numbers[row]), int(index.recordings[row]), int(index.lengths[row])
        name = annotation_file(recording) if recording != UNKNOWN else ""
        path: pathlib.Path = contents.root / name
        if not path.is_file():
            findings.append(Finding("no annotation", name or "annotations", "there is no file", number))
            continue
        try:
            annotation = parse_file(path)
        except (ValueError, OSError) as error:
            findings.append(Finding("broken annotation", name, str(error), number))
            continue
        for kind, count in zip(IN_FILE, annotation.counts, strict=True):
            counts[kind] += count
        counts["past the end"] += annotation.last_end > length
        begin, end = annotation.window
        counts["odd valid_duration"] += not 0 <= begin < end <= length + 1
        if not annotation.runs:
            findings.append(Finding("no annotation", name, "its file has no usable skill", number))
    return findings, counts


def audit_revision(contents: Contents, there: set[str]) -> list[Finding]:
    """Returns the signs that the copy is older than its release's corrections, in the episodes that are there."""
    index = contents.index
    is_there = np.array([file in there for file in index.data_files], bool)
    rows = np.flatnonzero(is_there[index.data_ids]) if len(is_there) else np.zeros(0, int)
    if not len(rows):
        return []
    held = index.take(rows)
    try:
        revision.refuse_outdated(held, Rows(held))
    except (OSError, pa.ArrowException) as error:
        return [Finding("not checked", "revision", str(error).splitlines()[0])]
    except ValueError as error:
        is_outdated = "older than the corrections" in str(error)
        return [Finding("wrong revision" if is_outdated else "not checked", "revision", str(error))]
    return []
