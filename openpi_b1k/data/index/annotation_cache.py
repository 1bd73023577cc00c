"""Parsed annotations as compact arrays on disk, one file per folder, valid while no annotation changes."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import socket
import zipfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from openpi_b1k import paths
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import Kind

if TYPE_CHECKING:
    from openpi_b1k.data.index.annotations import Annotation

THREADS = 16
"""That look, read and parse: as many files are on their way from a slow disk."""
ANNOTATION = re.compile(r"episode_\d+\.json")
VERSION = 1
"""Of what is stored, and of the rules it was made by."""


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """The annotations of a folder. Axes: `f` files, `r` runs."""

    recordings: np.ndarray
    """int64 [f]"""
    windows: np.ndarray
    """int64 [f, 2]"""
    durations: np.ndarray
    """int64 [f]"""
    last_ends: np.ndarray
    """int64 [f]: where the last skill ends."""
    counts: np.ndarray
    """int64 [f, c]"""
    offsets: np.ndarray
    """int64 [f + 1]: runs of a file."""
    first: np.ndarray
    """int64 [r]"""
    kind_ids: np.ndarray
    """int64 [r]"""
    kinds: tuple[Kind, ...]


Parse = Callable[[pathlib.Path], "Annotation"]


def read_folders(index: EpisodeIndex, names: Sequence[str], parse: Parse) -> list[Folder]:
    """Returns the annotations in some folders of a data set, those from the cache in which no file has changed.

    Args:
        index: of the data set; its meta files are part of the cache's address.
        names: the folders, relative to the root; those without an annotation are left out.
        parse: reads one file. Threads call it.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        listed = list(pool.map(_files, [index.root / name for name in names]))
        states = [hashlib.sha256(repr((VERSION, files)).encode()).hexdigest() for files in listed]
        places = [_place(index, name) for name in names]
        stored = list(pool.map(_load, places, states))
        missing = sum(len(files) for files, folder in zip(listed, stored, strict=True) if folder is None)
        with tqdm(total=missing, desc="annotations", unit="file", disable=None if missing else True) as bar:
            for i, files in enumerate(listed):
                if files and stored[i] is None:
                    parsed = list(pool.map(parse, [index.root / names[i] / name for name, _, _ in files]))
                    stored[i] = folder = _folder([_recording(name) for name, _, _ in files], parsed)
                    _store(places[i], states[i], folder)
                    bar.update(len(files))
    return [folder for folder in stored if folder is not None]


def _place(index: EpisodeIndex, name: str) -> pathlib.Path:
    where = hashlib.sha256(str(index.root.resolve()).encode()).hexdigest()[:8]
    return paths.cache_dir() / "annotations" / index.meta_digest[:32] / where / f"{name.replace('/', '+')}.npz"


def _recording(name: str) -> int:
    """Returns the number in episode_00000010.json."""
    return int(name.removesuffix(".json").removeprefix("episode_"))


def _files(folder: pathlib.Path) -> list[tuple[str, int, int]]:
    """Returns name, size and time of change of a folder's annotations, by name."""
    if not folder.is_dir():
        return []
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if ANNOTATION.fullmatch(entry.name):
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns))
    return sorted(files)


def _folder(recordings: list[int], parsed: "list[Annotation]") -> Folder:
    kinds: dict[Kind, int] = {}
    runs = [(first, kinds.setdefault(kind, len(kinds))) for annotation in parsed for first, kind in annotation.runs]
    table = np.array(runs, np.int64).reshape(-1, 2)
    return Folder(
        recordings=np.array(recordings, np.int64),
        windows=np.array([annotation.window for annotation in parsed], np.int64),
        durations=np.array([annotation.duration for annotation in parsed], np.int64),
        last_ends=np.array([annotation.last_end for annotation in parsed], np.int64),
        counts=np.array([annotation.counts for annotation in parsed], np.int64),
        offsets=np.cumsum([0, *(len(annotation.runs) for annotation in parsed)], dtype=np.int64),
        first=table[:, 0],
        kind_ids=table[:, 1],
        kinds=tuple(kinds),
    )


def _store(path: pathlib.Path, state: str, folder: Folder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {field.name: getattr(folder, field.name) for field in dataclasses.fields(folder) if field.name != "kinds"}
    arrays["state"] = np.frombuffer(state.encode(), np.uint8)
    arrays["kinds"] = np.frombuffer(json.dumps([dataclasses.astuple(kind) for kind in folder.kinds]).encode(), np.uint8)
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    partial.rename(path)


def _load(path: pathlib.Path, state: str) -> Folder | None:
    """Returns what is stored, or None if it is not there, not whole, or of other files."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            if bytes(stored["state"]).decode() != state:
                return None
            arrays = {name: stored[name] for name in stored.files if name not in {"state", "kinds"}}
            kinds = json.loads(bytes(stored["kinds"]))
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None
    return Folder(**arrays, kinds=tuple(Kind(text, tuple(skills), tuple(objects)) for text, skills, objects in kinds))
