"""Segmentation videos of 2025: colours of a palette that stand for instance ids, and labels of the objects in use.

A video paints instance `ids[p]` in colour p of a palette, and is encoded with loss; the colour nearest to a pixel tells
its instance. An instance is a mesh, and its prim path /World/scene_0/<object>/... tells the object.
Source: `generate_yuv_palette`, `instance_id_to_instance` of OmniGibson's `learning/utils/obs_utils.py` (2025).
"""

import collections
import dataclasses
import functools
import json
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.robots import r1pro

MOST_LABELS = 8
"""Objects that a frame tells apart; further ones are background."""
EPISODES_KEPT = 256
"""Episodes whose ids a process remembers; the files that hold them have up to 2 MB each."""
OBJECT_PART = 3
"""Of a prim path: /World/scene_0/<object>/..."""
METAINFO_PATH = "meta/episodes/task-{episode_chunk:04d}/episode_{episode_index:08d}.json"
"""Where info.json does not say."""


@dataclasses.dataclass(frozen=True)
class Instances:
    """What one camera sees in one episode."""

    ids: tuple[int, ...]
    """Instance of each colour of the palette."""
    objects: tuple[str, ...]
    """The object each belongs to; "" where it belongs to none."""

    def labels(self, objects: Sequence[str]) -> np.ndarray:
        """Returns the label of each colour: uint8 [n]; 1 for the first of the objects and so on, 0 for all else.

        An object that the camera does not see gets its label all the same, and no pixel has it.
        """
        known = {name: label + 1 for label, name in reversed(list(enumerate(objects[:MOST_LABELS])))}
        return np.array([known.get(name, 0) for name in self.objects], np.uint8)


def axis_levels(count: int) -> int:
    """Returns how many values each of the palette's three axes has with `count` colours."""
    levels = 1
    while levels**3 < count:
        levels += 1
    return levels


@functools.cache
def palette(count: int) -> np.ndarray:
    """Returns the colours of `count` instances: uint8 [count, 3]."""
    levels = axis_levels(count)
    axes = [np.linspace(16, top, levels).astype(np.uint8) for top in (235, 240, 240)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)[:count]


@functools.cache
def _nearest(count: int) -> tuple[np.ndarray, ...]:
    """Returns, for each channel, what each of its 256 values adds to the position of the nearest colour: uint32."""
    levels = axis_levels(count)
    parts = []
    for channel, top in enumerate((235, 240, 240)):
        axis = np.linspace(16, top, levels).astype(np.uint8).astype(np.int64)
        nearest = np.abs(np.arange(256)[:, None] - axis).argmin(axis=1)
        parts.append((nearest * levels ** (2 - channel)).astype(np.uint32))
    return tuple(parts)


def positions(image: np.ndarray, count: int) -> np.ndarray:
    """Returns the position in the palette of the colour nearest to each pixel: uint16 [h, w].

    The palette is a grid, so each channel decides for itself; only pixels nearest to a place of the grid that no
    instance has are compared with every colour. Of colours equally near, the first counts.

    Args:
        image: uint8 [h, w, 3].
        count: colours of the palette.
    """
    first, second, third = (part[image[..., channel]] for channel, part in enumerate(_nearest(count)))
    found = first + second + third
    vacant = found >= count
    if vacant.any():
        pixels, inverse = np.unique(image[vacant], axis=0, return_inverse=True)
        distances = ((pixels[:, None].astype(np.int64) - palette(count)) ** 2).sum(axis=-1)
        found[vacant] = distances.argmin(axis=1)[inverse.ravel()]
    return found.astype(np.uint16)


class EpisodeInstances:
    """Instances by episode, read from the episode's meta file when first asked for. Threads may share one."""

    def __init__(self, index: EpisodeIndex, camera: str) -> None:
        """Reads nothing yet.

        Args:
            index: of a 2025 data set.
            camera: whose segmentation is read.
        """
        self._index = index
        self._camera = camera
        self._kept: collections.OrderedDict[int, Instances] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._template: str | None = None
        self._chunk = 1

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own."""
        return EpisodeInstances, (self._index, self._camera)

    def __call__(self, row: int) -> Instances:
        """Returns the instances that the camera sees in the episode of that row.

        Raises:
            FileNotFoundError: the episode has no meta file.
            ValueError: it does not say which instances there are.
        """
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
        instances = read_instances(self._path(row), self._camera)
        with self._lock:
            self._kept[row] = instances
            while len(self._kept) > EPISODES_KEPT:
                self._kept.popitem(last=False)
        return instances

    def _path(self, row: int) -> pathlib.Path:
        root, number = self._index.root, int(self._index.numbers[row])
        if self._template is None:
            info = json.loads((root / "meta/info.json").read_text(encoding="utf-8"))
            self._chunk = int(info.get("chunks_size", 1))
            self._template = str(info.get("metainfo_path", METAINFO_PATH))
        return root / self._template.format(episode_chunk=number // self._chunk, episode_index=number)


def read_instances(path: pathlib.Path, camera: str) -> Instances:
    """Returns the instances of a camera from an episode's meta file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON or does not tell the instances.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which tells what the colours of segmentation mean; download meta/episodes/"
        )
    name = next(known.simulator_name for known in r1pro.CAMERAS if known.name == camera)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ids = tuple(int(i) for i in content[f"{name}::unique_ins_ids"])
        paths = json.loads(content["ins_id_mapping"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not tell the instances of camera {camera!r} ({error!r}); download it again"
        ) from error
    return Instances(ids, tuple(_object(paths.get(str(i), "")) for i in ids))


def _object(path: str) -> str:
    """Returns the object of a prim path, "" for background and the like."""
    parts = path.split("/")
    return parts[OBJECT_PART] if len(parts) > OBJECT_PART else ""
