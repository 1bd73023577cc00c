"""All videos of a data set, where training reads those that its config asks for."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from openpi_b1k.config.data import CAMERAS, Generation, Modality
from openpi_b1k.data.index import formats
from openpi_b1k.data.index.episodes import EpisodeIndex, Video
from openpi_b1k.data.index.listing import to_index
from openpi_b1k.data.index.tasks import Task, task_numbers
from openpi_b1k.robots import r1pro

MODALITIES: tuple[Modality, ...] = ("rgb", "depth", "segmentation")


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What the meta files of a data set promise."""

    root: pathlib.Path
    generation: Generation
    info: dict[str, Any]
    """meta/info.json."""
    tasks: dict[int, Task]
    index: EpisodeIndex
    """The chosen tasks' episodes, with every chosen video."""
    is_whole: bool
    """All tasks are chosen."""


def read_contents(
    root: pathlib.Path,
    tasks: Sequence[str] = (),
    cameras: Sequence[str] = CAMERAS,
    modalities: Sequence[Modality] = MODALITIES,
) -> Contents:
    """Returns what the data set at `root` holds, whichever generation it is of.

    Args:
        root: holds meta/, data/ and videos/.
        tasks: names; none means all.
        cameras: those whose videos count.
        modalities: those whose videos count, as far as the data set has them.

    Raises:
        FileNotFoundError: a meta file is missing.
        ValueError: a meta file is not of a known format, or a task is unknown.
    """
    version = _version(root)
    info = formats.read_info(root, formats.generation_of(version))
    reader = formats.FORMATS[info["codebase_version"]]
    known = reader.read_task_table(root)
    videos = find_all_videos(info, cameras, modalities)
    listing = reader.read_listing(root, info, videos, known)
    index = to_index(root, info, videos, known, listing, formats.meta_digest(root / "meta"))
    if tasks:
        index = index.select(task_numbers(tasks, known, root / "meta"))
    return Contents(root, formats.generation_of(info), info, known, index, not tasks)


def _version(root: pathlib.Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; the data set directory must be the one that holds meta/, data/ and videos/"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; download it again") from error
    if info.get("codebase_version") not in formats.FORMATS or "features" not in info:
        known = " or ".join(formats.FORMATS)
        raise ValueError(f"{path} has codebase_version {info.get('codebase_version')!r}; this reader knows {known}")
    return info


def find_all_videos(info: dict[str, Any], cameras: Sequence[str], modalities: Sequence[Modality]) -> tuple[Video, ...]:
    """Returns the videos that an info.json declares of those cameras in those modalities, modality by modality."""
    videos = []
    for modality in modalities:
        for camera in cameras:
            keys = next(known for known in r1pro.CAMERAS if known.name == camera).video_keys(modality)
            for key in (key for key in keys if key in info["features"]):
                feature = info["features"][key]
                axes = feature.get("names") or ("height", "width", "channels")
                shape = dict(zip(axes, feature["shape"], strict=False))
                videos.append(Video(camera, modality, key, int(shape["height"]), int(shape["width"])))
    return tuple(videos)


def episodes_of_files(index: EpisodeIndex, video: int) -> dict[str, np.ndarray]:
    """Returns {video file: rows of the index that it shows, by first frame} of the index's video number `video`."""
    ids = index.video_ids[:, video]
    order = np.lexsort((index.first_frames[:, video], ids))
    firsts = np.flatnonzero(np.diff(ids[order], prepend=-1))
    groups = np.split(order, firsts[1:]) if len(order) else []
    return {index.video_files[ids[rows[0]]]: rows for rows in groups}
