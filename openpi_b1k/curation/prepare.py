"""A copy of a data set whose videos have the model's size and short GOPs, in the same layout for the same reader.

Work is a list of files, in the same order everywhere: parquet, annotations and meta files to copy, videos to write
anew. Every shard takes its part of it. A file is at its place when it is whole and checked, so a second start does only
what is missing. meta/info.json comes last, by the shard that finds all else there: no reader opens half a data set.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence

import tqdm

from openpi_b1k.config.data import CAMERAS, Modality
from openpi_b1k.curation import marker
from openpi_b1k.curation.contents import MODALITIES, Contents, episodes_of_files, read_contents
from openpi_b1k.curation.recode import PARTIAL, Job, Result, Settings, recode, sample_size
from openpi_b1k.data.index.annotations import annotation_file
from openpi_b1k.data.index.episodes import Video
from openpi_b1k.data.index.revision import NOTES
from openpi_b1k.data.shards import Shard

logger = logging.getLogger(__name__)

SAMPLE_FRAMES = 32
COPIED = ("meta", "annotations", "orchestrators", f"{NOTES}/meta", f"{NOTES}/data")
"""Folders that are copied. The notes of the download tell a data set's revision."""
BY_TASK = ("annotations", "orchestrators", "meta/episodes")
"""Folders that hold a folder for each task."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that there is to do, over all shards."""

    source: Contents
    target: pathlib.Path
    settings: Settings
    jobs: tuple[Job, ...]
    copies: tuple[str, ...]
    """Files that are copied as they are, relative to the root."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a plan takes, from the first frames of a video of each modality."""

    num_frames: int
    """Over all videos."""
    source_bytes: int
    target_bytes: int
    core_seconds: float

    def __str__(self) -> str:
        """Returns it as one line."""
        return (
            f"{self.num_frames} video frames; {self.source_bytes / 1e9:.3g} GB become about "
            f"{self.target_bytes / 1e9:.3g} GB, in about {self.core_seconds / 3600:.3g} hours of one core"
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did."""

    results: tuple[Result, ...]
    failures: tuple[tuple[str, str], ...]
    """(file, why it could not be written)."""
    is_complete: bool
    """All files of all shards are there, and the data set can be opened."""


def plan(
    source: pathlib.Path,
    target: pathlib.Path,
    settings: Settings,
    tasks: Sequence[str] = (),
    cameras: Sequence[str] = CAMERAS,
    modalities: Sequence[Modality] = MODALITIES,
) -> Plan:
    """Returns what there is to do to prepare the data set at `source`, or a choice of it, at `target`.

    Raises:
        FileNotFoundError: a meta file of the source is missing.
        ValueError: the source is not of a known format, is the target, or has none of those videos.
    """
    if target.resolve() == source.resolve():
        raise ValueError(f"a data set cannot be prepared in its own place; --target is {target}")
    contents = read_contents(source, tasks, cameras, modalities)
    if not contents.index.videos:
        raise ValueError(f"{source} has no videos of {', '.join(cameras)} in {', '.join(modalities)}")
    jobs = [job for v, video in enumerate(contents.index.videos) for job in _jobs(contents, target, v, video)]
    return Plan(contents, target, settings, tuple(jobs), tuple(_copies(contents)))


def estimate(work: Plan) -> Estimate:
    """Returns what all shards of a plan take together; encodes some frames of each modality to tell."""
    source_bytes = target_bytes = sum(_size(work.source.root / name) for name in work.copies)
    num_frames, seconds = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for modality in MODALITIES:
            jobs = [job for job in work.jobs if job.modality == modality]
            probed = next((job for job in jobs if job.source.is_file()), None)
            if probed is None:
                continue
            start = time.process_time()
            frames, size = sample_size(probed, work.settings, SAMPLE_FRAMES, pathlib.Path(folder) / "sample.mp4")
            cost = (time.process_time() - start) / max(frames, 1)
            count = sum(job.num_frames for job in jobs)
            num_frames += count
            source_bytes += sum(_size(job.source) for job in jobs)
            target_bytes += count * size // max(frames, 1)
            seconds += count * cost
    return Estimate(num_frames, source_bytes, target_bytes, seconds)


def check_space(work: Plan, expected: Estimate) -> None:
    """Refuses a plan that the disk has no room for.

    Raises:
        ValueError: says how much is needed and how much there is.
    """
    there = sum(_size(job.target) for job in work.jobs) + sum(_size(work.target / name) for name in work.copies)
    missing = expected.target_bytes - there
    folder = next(folder for folder in (work.target, *work.target.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(
            f"{work.target} needs about {missing / 1e9:.3g} GB more, its disk has {free / 1e9:.3g} GB free; choose "
            "another --target, fewer --tasks or --modalities, or a higher --crf"
        )


def run(work: Plan, shard: Shard, num_workers: int) -> Report:
    """Does a shard's part of a plan, under a progress bar, and returns what came of it.

    Args:
        work: what there is to do.
        shard: the part of it.
        num_workers: processes that decode and encode; 0 works in this one.

    Raises:
        ValueError: the target holds something else, or was begun with other settings or from other data.
        OSError: a file cannot be copied.
    """
    marker.begin(work.source, work.target, work.settings)
    copies = [name for name in shard.take(work.copies) if not (work.target / name).is_file()]
    for name in tqdm.tqdm(copies, desc="copies", unit=" files", disable=None):
        copy(work.source.root / name, work.target / name)
    jobs = [job for job in shard.take(work.jobs) if not job.target.is_file()]
    done = len(shard.take(work.jobs)) - len(jobs)
    if done:
        logger.info("%d videos of shard %s are there already", done, shard)
    results, failures = [], []
    with (
        tqdm.tqdm(total=sum(job.num_frames for job in jobs), desc="videos", unit=" frames", disable=None) as bar,
        marker.open_record(work.target, shard) as record,
    ):
        for job, outcome in each_outcome(jobs, work.settings, num_workers):
            bar.update(job.num_frames)
            if isinstance(outcome, Result):
                results.append(outcome)
                marker.note(record, outcome)
            else:
                logger.error("%s", outcome)
                failures.append((job.name, str(outcome)))
    is_complete = all((work.target / name).is_file() for name in work.copies)
    is_complete = is_complete and all(job.target.is_file() for job in work.jobs)
    if is_complete:
        marker.finish(work.source, work.target, work.settings)
    return Report(tuple(results), tuple(failures), is_complete)


def summary(report: Report) -> str:
    """Returns what a run did, as text."""
    lossy = [result.psnr for result in report.results if math.isfinite(result.psnr)]
    before = sum(result.source_bytes for result in report.results)
    after = sum(result.target_bytes for result in report.results)
    lines = [f"{len(report.results)} videos written, {before / 1e9:.3g} GB before, {after / 1e9:.3g} GB now"]
    if lossy:
        lines.append(f"PSNR of RGB {min(lossy):.1f} to {max(lossy):.1f} dB; depth and segmentation are exact")
    if report.failures:
        lines.append(f"{len(report.failures)} videos failed:")
        lines += [f"  {name}: {reason}" for name, reason in report.failures]
    lines.append("complete" if report.is_complete else "not complete: other shards, or failed videos, are missing")
    return "\n".join(lines)


def each_outcome(jobs: list[Job], settings: Settings, num_workers: int) -> Iterator[tuple[Job, Result | Exception]]:
    """Yields (job, its result or the error that a bad file made), in any order."""
    work = functools.partial(attempt, settings=settings)
    if not num_workers:
        yield from ((job, work(job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()


def attempt(job: Job, settings: Settings) -> Result | FileNotFoundError | ValueError:
    """Returns the job's result, or the error that its files made, so that the others go on."""
    try:
        return recode(job, settings)
    except (FileNotFoundError, ValueError) as error:
        return error


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file; it appears at its place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}{PARTIAL}-{os.getpid()}")
    try:
        shutil.copy2(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _jobs(contents: Contents, target: pathlib.Path, v: int, video: Video) -> list[Job]:
    index, jobs = contents.index, []
    for name, rows in episodes_of_files(index, v).items():
        metainfo = None
        if video.modality == "segmentation" and "metainfo_path" in contents.info:
            number, size = int(index.numbers[rows[0]]), contents.info["chunks_size"]
            path = contents.info["metainfo_path"].format(episode_chunk=number // size, episode_index=number)
            metainfo = contents.root / path
        jobs.append(
            Job(
                source=contents.root / name,
                target=target / name,
                name=name,
                video=video,
                fps=index.fps,
                num_frames=int((index.first_frames[rows, v] + index.lengths[rows]).max()),
                metainfo=metainfo,
            )
        )
    return jobs


def _copies(contents: Contents) -> list[str]:
    """Returns the files of the chosen episodes that are no video, and the notes of their download."""
    root, index = contents.root, contents.index
    names = {index.data_files[i] for i in set(index.data_ids.tolist())}
    folders = {
        pathlib.PurePath(annotation_file(number)).parts[1] for number in index.recordings.tolist() if number >= 0
    }
    for top in COPIED:
        for path in (path for path in (root / top).rglob("*") if path.is_file()):
            name = path.relative_to(root).as_posix()
            task = next((part for part in name.split("/") if part.startswith("task-")), None)
            is_other_task = not contents.is_whole and name.startswith(BY_TASK) and task and task not in folders
            if not is_other_task and PARTIAL not in name and not name.startswith(marker.RECORDS):
                names.add(name)
    return sorted(names - {"meta/info.json", marker.MARKER})


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0
