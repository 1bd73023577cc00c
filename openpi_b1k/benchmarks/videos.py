"""Generated data sets of each kind a loader meets, made once in the cache: what they cost to read is what matters.

A few clips are drawn and encoded; longer files repeat them in different orders without decoding; and many episodes are
hard links to the same files, or lie in files that many names share. A reader sees as many episodes, files and bytes
as the kind has, though the disk keeps a small part of them.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from openpi_b1k import paths
from openpi_b1k.benchmarks import footage, metadata
from openpi_b1k.config.data import Generation
from openpi_b1k.curation.encoders import Encoder, encoder_of
from openpi_b1k.curation.recode import Settings
from openpi_b1k.lerobot_format import vectors
from openpi_b1k.robots.layout import Layout
from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO, PROPRIO_IN_USE
from openpi_b1k.sample import demos

logger = logging.getLogger(__name__)

CHUNK = 10_000
"""Episode numbers of a task in the 2025 release."""
PROMPT = "Pick up the blue box that is on the floor of room {task} and put it on the table."
PARAMETERS = "log-level=none:keyint={distance}:min-keyint={distance}:scenecut=0:open-gop=0:pools=none:frame-threads=1"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a generated data set is like."""

    name: str
    generation: Generation
    encoder: Encoder
    sizes: tuple[int, int, int]
    """Height and width in pixels of head, left wrist and right wrist."""
    num_tasks: int
    episodes_per_task: int
    length: int
    """Frames of an episode, a multiple of `clip_length` in 2025."""
    num_clips: int = 4
    """Drawn and encoded, for each camera."""
    clip_length: int = 250
    """Frames; a multiple of the frames between key frames."""
    num_reels: int = 4
    """Different video files of each camera."""

    @property
    def frames_per_file(self) -> int:
        """A video file holds an episode in 2025, all of a task's episodes in 2026."""
        return self.length * (1 if self.generation == "2025" else self.episodes_per_task)


def hevc(distance: int, crf: int, more: str = "") -> Encoder:
    """Returns the releases' encoder with a key frame every `distance` frames."""
    options = {"crf": str(crf), "preset": "medium", "x265-params": PARAMETERS.format(distance=distance) + more}
    return Encoder("libx265", "yuv420p", tuple(options.items()))


PREPARED = Settings()
"""What scripts/prepare_dataset.py does unless told otherwise."""
KINDS = {
    kind.name: kind
    for kind in (
        Kind("2025-gop250", "2025", hevc(250, 28), (720, 480, 480), 10, 40, 2000, num_reels=12),
        Kind("2026-gop8", "2026", hevc(8, 30, ":bframes=0"), (720, 480, 480), 50, 24, 1000, clip_length=160),
        Kind(
            f"prepared-{PREPARED.image_size}",
            "2026",
            encoder_of("rgb", PREPARED.key_frame_distance, PREPARED.crf),
            (PREPARED.image_size, PREPARED.image_size, PREPARED.image_size),
            *(50, 24, 1000),
            clip_length=160,
        ),
    )
}


def kind_named(name: str) -> Kind:
    """Returns a kind of data by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in KINDS:
        raise ValueError(f"no kind of data {name!r}; known kinds: {', '.join(KINDS)}")
    return KINDS[name]


def make(kind: Kind) -> pathlib.Path:
    """Returns the directory of a kind's data, made now or before: about a minute on two cores."""
    root = paths.cache_dir() / "benchmark" / f"{kind.name}-{_version(kind)}"
    demos.make_once(root, lambda partial: write(partial, kind))
    return root


def write(root: pathlib.Path, kind: Kind) -> None:
    """Writes a data set to `root`, on all cores."""
    reels = _write_reels(root / "reels", kind)
    tasks = range(kind.num_tasks)
    names, sentences = [f"task_{task}" for task in tasks], [PROMPT.format(task=task) for task in tasks]
    if kind.generation == "2025":
        _write_2025(root, kind, reels, names, sentences)
    else:
        _write_2026(root, kind, reels, names, sentences)


def data_bytes(root: pathlib.Path) -> int:
    """Returns the size on disk of a data set's files, those with several names counted once."""
    sizes = {}
    for path in root.rglob("*"):
        if path.is_file():
            status = path.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def _version(kind: Kind) -> str:
    """Returns a hash of what decides the data, so that changed code makes new ones."""
    digest = hashlib.sha256(repr(kind).encode())
    for module in (footage, metadata):
        digest.update(pathlib.Path(str(module.__file__)).read_bytes())
    digest.update(pathlib.Path(__file__).read_bytes())
    return digest.hexdigest()[:12]


def _write_reels(folder: pathlib.Path, kind: Kind) -> dict[int, list[pathlib.Path]]:
    """Writes the video files that episodes will share, and returns them by place of the camera."""
    folder.mkdir(parents=True)
    clips = {
        (place, i): folder / f"clip-{place}-{i}.mp4" for place in range(len(kind.sizes)) for i in range(kind.num_clips)
    }
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        encoded = [
            pool.submit(footage.encode, path, 10 * i + place, kind.sizes[place], kind.clip_length, kind.encoder)
            for (place, i), path in clips.items()
        ]
        for clip in tqdm.tqdm(
            concurrent.futures.as_completed(encoded), desc=kind.name, total=len(encoded), unit="clip"
        ):
            clip.result()
    count = -(-kind.frames_per_file // kind.clip_length)
    reels: dict[int, list[pathlib.Path]] = {}
    for place in range(len(kind.sizes)):
        for reel in range(kind.num_reels):
            order = np.random.default_rng((place, reel)).integers(0, kind.num_clips, count).tolist()
            path = folder / f"reel-{place}-{reel}.mp4"
            footage.repeat([clips[place, i] for i in order], path)
            reels.setdefault(place, []).append(path)
    return reels


def _write_2025(
    root: pathlib.Path, kind: Kind, reels: dict[int, list[pathlib.Path]], names: list[str], sentences: list[str]
) -> None:
    """Writes one parquet file per episode and links its videos."""
    numbers = [task * CHUNK + i * 10 for task in range(kind.num_tasks) for i in range(kind.episodes_per_task)]
    templates = {
        "data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet",
        "video_path": "videos/task-{episode_chunk:04d}/{video_key}/episode_{episode_index:08d}.mp4",
    }
    keys = [camera.dataset_keys[0] for camera in CAMERAS]
    layout = PROPRIO["2025"]
    for i, number in enumerate(numbers):
        address = {"episode_chunk": number // CHUNK, "episode_index": number}
        _write_rows(root / templates["data_path"].format(**address), [number], kind.length, layout)
        for place, key in enumerate(keys):
            target = root / templates["video_path"].format(video_key=key, **address)
            _link(reels[place][(i + place) % kind.num_reels], target)
    features = {
        key: {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "rgb"]}
        for key, size in zip(keys, kind.sizes, strict=True)
    }
    features |= {
        "action": {"dtype": "float32", "shape": [ACTION.size], "names": None},
        "observation.state": {"dtype": "float32", "shape": [layout.size], "names": None},
    }
    info = {"codebase_version": "v2.1", "robot_type": "R1Pro", "chunks_size": CHUNK, "fps": footage.FPS, **templates}
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    tasks = [
        {"task_index": task, "task_name": name, "task": sentence}
        for task, (name, sentence) in enumerate(zip(names, sentences, strict=True))
    ]
    episodes = [{"episode_index": n, "tasks": [sentences[n // CHUNK]], "length": kind.length} for n in numbers]
    for file, lines in (("tasks", tasks), ("episodes", episodes)):
        (root / f"meta/{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_2026(
    root: pathlib.Path, kind: Kind, reels: dict[int, list[pathlib.Path]], names: list[str], sentences: list[str]
) -> None:
    """Writes one parquet file per task and links its videos, which show its episodes one after the other."""
    count, length = kind.episodes_per_task, kind.length
    tasks = np.repeat(np.arange(kind.num_tasks), count)
    firsts = np.tile(np.arange(count) * length, kind.num_tasks)
    where = metadata.Place(np.zeros_like(tasks), firsts)
    sizes = {camera.dataset_keys[1]: size for camera, size in zip(CAMERAS, kind.sizes, strict=True)}
    lengths = np.full(len(tasks), length)
    episodes = metadata.Episodes(tasks, lengths, where, dict.fromkeys(sizes, where), sizes)
    metadata.write_meta(root, episodes, names, sentences)
    for task in range(kind.num_tasks):
        address = {"chunk_index": task, "file_index": 0}
        numbers = list(range(task * count, (task + 1) * count))
        path = root / metadata.TEMPLATES["data_path"].format(**address)
        _write_rows(path, numbers, length, PROPRIO["2026"])
        for place, key in enumerate(sizes):
            target = root / metadata.TEMPLATES["video_path"].format(video_key=key, **address)
            _link(reels[place][(task + place) % kind.num_reels], target)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _write_rows(path: pathlib.Path, numbers: list[int], length: int, layout: Layout) -> None:
    """Writes smooth proprio and actions of episodes, one after the other; the base stands still."""
    rng = np.random.default_rng(numbers[0])
    rows = len(numbers) * length
    time = np.arange(rows)[:, None] / footage.FPS

    def smooth(size: int) -> np.ndarray:
        speed, phase = rng.uniform(0.2, 1.5, (2, size))
        return (0.05 * np.sin(time * speed + 7 * phase)).astype(np.float32)

    proprio = np.zeros((rows, layout.size), np.float32)
    for name in PROPRIO_IN_USE.names:
        if name != "base_qvel":
            where = layout.slice(name)
            proprio[:, where] = smooth(where.stop - where.start)
    actions = smooth(ACTION.size)
    actions[:, ACTION.slice("base")] = 0
    columns = {"episode_index": pa.array(np.repeat(numbers, length))}
    for name, values in (("observation.state", proprio), ("action", actions)):
        columns[name] = vectors(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
