"""Part of a published data set, chosen by task, camera and modality, fetched from the Hugging Face Hub.

Sizes come from the repository's file list, so they are known before anything large is fetched. What is fetched is told
by the repository's own meta/info.json; meta files and annotations always come along. In the 2026 release a chunk of
files is a task; in 2025 folders are named after it.
"""

import concurrent.futures
import dataclasses
import functools
import json
import logging
import pathlib
import posixpath
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import tqdm

from openpi_b1k.config.data import CAMERAS, Generation, Modality
from openpi_b1k.data.index.tasks import read_tasks, task_numbers
from openpi_b1k.robots import r1pro

logger = logging.getLogger(__name__)

REPOSITORIES: dict[Generation, tuple[str, str]] = {
    "2025": ("behavior-1k/2025-challenge-demos", "v2.1"),
    "2026": ("behavior-1k/2026-challenge-demos", "main"),
}
"""Repository and revision by generation."""
ANNOTATIONS = "annotations/task-{task:04d}"
INFO, TASKS = "meta/info.json", "meta/tasks.jsonl"
CONNECTIONS = 8


class Hub(Protocol):
    """What is used of huggingface_hub.HfApi."""

    def repo_info(self, repo_id: str, *, revision: str, repo_type: str) -> Any:  # Any: an object with `sha`
        """Returns the repository's state."""
        ...

    def list_repo_tree(
        self, repo_id: str, path_in_repo: str, *, recursive: bool, revision: str, repo_type: str
    ) -> Iterable[Any]:  # Any: objects with `path`, and `size` if they are files
        """Yields what a folder holds."""
        ...

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str, repo_type: str, local_dir: str) -> str:
        """Fetches a file, unless it is there."""
        ...


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of the repository."""

    path: str
    size: int
    """Bytes."""


@dataclasses.dataclass(frozen=True)
class Download:
    """What will be fetched, and where to."""

    repository: str
    commit: str
    root: pathlib.Path
    files: tuple[RemoteFile, ...]

    @property
    def missing(self) -> tuple[RemoteFile, ...]:
        """The files that are not there in full size."""
        return tuple(file for file in self.files if not _is_there(self.root / file.path, file.size))

    def summary(self) -> str:
        """Returns a table of sizes by kind, with what is still to be fetched."""
        kinds: dict[str, list[RemoteFile]] = {}
        for file in self.files:
            parts = file.path.split("/")
            kinds.setdefault(_video_key(parts) if parts[0] == "videos" else parts[0], []).append(file)
        lines = [f"{self.repository} at {self.commit} -> {self.root}"]
        lines += [f"{name:56} {len(files):7} files {_size(files):>10}" for name, files in sorted(kinds.items())]
        lines += [f"{name:56} {len(f):7} files {_size(f):>10}" for name, f in (("all", self.files),)]
        lines += [f"{'still to fetch':56} {len(self.missing):7} files {_size(self.missing):>10}"]
        return "\n".join(lines)


def plan(
    hub: Hub,
    source: tuple[str, str],
    root: pathlib.Path,
    tasks: Sequence[str] = (),
    cameras: Sequence[str] = CAMERAS,
    modalities: Sequence[Modality] = ("rgb",),
) -> Download:
    """Returns what is to be fetched of (repository, revision) into `root`; fetches two small meta files to know it.

    Every chosen modality is fetched of every chosen camera; no task means all.

    Raises:
        ValueError: the repository cannot be read, or has no such task or video.
    """
    from huggingface_hub import errors  # noqa: PLC0415  # slow to import

    repository, revision = source
    try:
        commit = hub.repo_info(repository, revision=revision, repo_type="dataset").sha
        info = json.loads(_fetch(hub, repository, commit, root, INFO).read_text(encoding="utf-8"))
        keys = video_keys(info, cameras, modalities, repository)
        numbers = None
        if tasks:
            path = _fetch(hub, repository, commit, root, TASKS)
            numbers = task_numbers(tasks, read_tasks(path), path)
        listed = _list(hub, repository, commit, folders(info, keys, numbers))
    except (errors.HfHubHTTPError, OSError) as error:
        raise ValueError(f"cannot read {repository} at {revision} on the Hugging Face Hub: {error}") from error
    wanted = {
        file for file in listed if not file.path.startswith("videos/") or _video_key(file.path.split("/")) in keys
    }
    _check_complete(wanted, keys, repository, tasks)
    return Download(repository, commit, root, tuple(sorted(wanted, key=lambda file: file.path)))


def fetch(hub: Hub, download: Download, connections: int = CONNECTIONS) -> None:
    """Fetches what is missing; a second call goes on where the first was cut off.

    Raises:
        ValueError: the disk has not enough room, or a file could not be fetched.
    """
    from huggingface_hub import errors  # noqa: PLC0415  # slow to import
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()  # one bar, not one per file
    needed, free = sum(file.size for file in download.missing), shutil.disk_usage(download.root).free
    if needed > free:
        raise ValueError(
            f"{_bytes(needed)} are to be fetched, but the disk of {download.root} has {_bytes(free)} left: choose "
            "fewer tasks, cameras or modalities, or another --root"
        )
    get = functools.partial(_fetch, hub, download.repository, download.commit, download.root)
    # Files that are there go through the Hub's client too: it knows whether their content is that of this commit.
    with (
        concurrent.futures.ThreadPoolExecutor(connections) as pool,
        tqdm.tqdm(total=sum(file.size for file in download.files), unit="B", unit_scale=True) as bar,
    ):
        tasks = {pool.submit(get, file.path): file for file in download.files}
        try:
            for done in concurrent.futures.as_completed(tasks):
                done.result()
                bar.update(tasks[done].size)
        except (errors.HfHubHTTPError, OSError) as error:
            raise ValueError(f"{download.repository} was not fetched whole: {error}; run it again to go on") from error
        finally:
            pool.shutdown(cancel_futures=True)
    broken = download.missing
    if broken:
        raise ValueError(f"{len(broken)} files are not as long as the Hub says, first {broken[0].path}; run it again")


def video_keys(
    info: dict[str, Any], cameras: Sequence[str], modalities: Sequence[Modality], repository: str
) -> tuple[str, ...]:
    """Returns the names of the chosen videos in a data set with this info.json.

    Raises:
        ValueError: it has no such video.
    """
    keys = []
    known = {camera.name: camera for camera in r1pro.CAMERAS}
    for modality in modalities:
        for name in cameras:
            key = next((key for key in known[name].video_keys(modality) if key in info["features"]), None)
            if key is None:
                held = ", ".join(key for key, feature in info["features"].items() if feature["dtype"] == "video")
                raise ValueError(f"{repository} has no {modality} video of camera {name!r}; it has {held}")
            keys.append(key)
    return tuple(keys)


def folders(info: dict[str, Any], keys: Sequence[str], tasks: Sequence[int] | None) -> dict[str, bool]:
    """Returns {folder to list: with what lies in its folders}; `tasks` None means all."""
    found = {"meta": False, "annotations": False}
    if tasks is None:
        return {"meta": True, "annotations": True, "data": True, "videos": True}
    for task in tasks:
        where = {"episode_chunk": task, "chunk_index": task, "episode_index": 0, "file_index": 0}
        data = posixpath.dirname(info["data_path"].format(**where))
        found |= {data: True, f"meta/episodes/{posixpath.basename(data)}": True, ANNOTATIONS.format(task=task): True}
        found |= {posixpath.dirname(info["video_path"].format(video_key=key, **where)): True for key in keys}
    return found


def _list(hub: Hub, repository: str, commit: str, wanted: dict[str, bool]) -> list[RemoteFile]:
    """Returns the files of the folders; a folder that is not there has none."""
    from huggingface_hub import errors  # noqa: PLC0415  # slow to import

    files = []
    for folder, recursive in tqdm.tqdm(wanted.items(), "reading the file list", unit="folder"):
        try:
            entries = hub.list_repo_tree(repository, folder, recursive=recursive, revision=commit, repo_type="dataset")
            files += [RemoteFile(entry.path, entry.size) for entry in entries if hasattr(entry, "size")]
        except errors.EntryNotFoundError:
            logger.info("%s has no folder %s", repository, folder)
    return files


def _check_complete(files: Iterable[RemoteFile], keys: Sequence[str], repository: str, tasks: Sequence[str]) -> None:
    folders = {part for file in files for part in (file.path.split("/")[0], *file.path.split("/")[1:-1])}
    absent = [name for name in ("data", *keys) if name not in folders]
    if absent:
        raise ValueError(f"{repository} holds no files of {', '.join(absent)} for {', '.join(tasks) or 'any task'}")


def _fetch(hub: Hub, repository: str, commit: str, root: pathlib.Path, file: str) -> pathlib.Path:
    root.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(
        hub.hf_hub_download(repository, file, revision=commit, repo_type="dataset", local_dir=str(root))
    )


def _is_there(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _video_key(parts: Sequence[str]) -> str:
    """Returns the folder that is named after a feature; the task's folder comes before it, or after."""
    return next((part for part in parts[1:-1] if part.startswith("observation.")), parts[0])


def _size(files: Sequence[RemoteFile]) -> str:
    return _bytes(sum(file.size for file in files))


def _bytes(count: int) -> str:
    return f"{tqdm.tqdm.format_sizeof(count, 'B', 1000)}"
