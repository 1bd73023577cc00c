"""Recordings: all that a policy saw and did in one rollout, from which training data can be made.

`<output dir>/recordings/<task>_<instance>_<rollout>/` holds

- `columns.npz`: `proprio` float32 [T, 256 or 61] and `action` float32 [T, 23]; row t is what was seen before action t,
  and action t. Nothing in it is pickled.
- `head.mp4`, `left_wrist.mp4`, `right_wrist.mp4`: T frames each, RGB at the size they were observed, 30 per second.
- `recording.json`: whose it is and how it went.

A recording appears under its name when it is whole; what was broken off ends in `.partial`.
"""

import dataclasses
import json
import pathlib
import shutil
import zipfile
from collections.abc import Mapping

import numpy as np

from openpi_b1k.config.data import Generation
from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO
from openpi_b1k.rollouts import videos
from openpi_b1k.rollouts.results import Rollout

FOLDER = "recordings"
"""Of an output directory."""
FORMAT_VERSION = 1
COLUMNS_FILE, FACTS_FILE = "columns.npz", "recording.json"
PARTIAL = ".partial"
"""What the directory of a recording that is not whole ends in."""

_TYPES = {
    "task": str,
    "prompt": str,
    "generation": str,
    "instance_id": int,
    "rollout_id": int,
    "success": bool,
    "q_score": float,
    "fps": int,
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recorded rollout."""

    directory: pathlib.Path
    task: str
    prompt: str
    """What the policy was told."""
    generation: Generation
    """Of the proprio."""
    instance_id: int
    rollout_id: int
    success: bool
    q_score: float
    """In [0, 1]."""
    fps: int
    proprio: np.ndarray
    """float32 [T, 256 or 61]"""
    action: np.ndarray
    """float32 [T, 23]"""
    videos: dict[str, pathlib.Path]
    """Camera -> its mp4 of T frames."""

    @property
    def length(self) -> int:
        """Environment steps, T."""
        return len(self.action)


class Recorder:
    """Records one rollout step by step. Leave it with `close` or `discard`."""

    def __init__(self, directory: pathlib.Path, *, prompt: str, generation: Generation) -> None:
        """Begins a recording beside its place.

        Args:
            directory: where it will be; its last part is the rollout's stem, <task>_<instance>_<rollout>.
            prompt: what the policy is told.
            generation: of the proprio.

        Raises:
            FileExistsError: there is a recording already.
        """
        if directory.exists():
            raise FileExistsError(f"{directory} is recorded already; remove it, or choose another output directory")
        self._directory, self._partial = directory, directory.with_name(directory.name + PARTIAL)
        self._prompt, self._generation = prompt, generation
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._videos = {camera.name: videos.VideoWriter(self._partial / f"{camera.name}.mp4") for camera in CAMERAS}
        self._proprio: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []

    def add(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> None:
        """Appends what was seen, the evaluator's keys of one environment, and the action [23] that was executed then.

        Raises:
            KeyError: a camera or the proprio is missing.
            ValueError: something has another shape than the format says.
        """
        proprio, size = observation["robot_r1::proprio"], PROPRIO[self._generation].size
        if proprio.shape != (size,) or np.shape(action) != (ACTION.size,):
            raise ValueError(
                f"a row is proprio [{size}] and action [{ACTION.size}]; got {list(proprio.shape)} and "
                f"{list(np.shape(action))}"
            )
        for name, image in videos.camera_images(observation).items():
            self._videos[name].add(image)
        self._proprio.append(np.array(proprio, np.float32))
        self._actions.append(np.array(action, np.float32))

    def close(self, rollout: Rollout) -> pathlib.Path:
        """Writes the rest, with how it went, and returns the directory, which now has its name.

        Raises:
            ValueError: the rollout is another one, or nothing was recorded.
        """
        if rollout.stem != self._directory.name:
            raise ValueError(f"{self._directory} is not the recording of {rollout.stem}")
        if not self._actions:
            raise ValueError(f"{self._directory}: nothing was recorded")
        for video in self._videos.values():
            video.close()
        np.savez(self._partial / COLUMNS_FILE, proprio=np.stack(self._proprio), action=np.stack(self._actions))
        facts = {
            "format_version": FORMAT_VERSION,
            "task": rollout.task,
            "prompt": self._prompt,
            "generation": self._generation,
            "instance_id": rollout.instance_id,
            "rollout_id": rollout.rollout_id,
            "success": rollout.success,
            "q_score": rollout.q_score,
            "fps": videos.FPS,
        }
        (self._partial / FACTS_FILE).write_text(json.dumps(facts, indent=4) + "\n", encoding="utf-8")
        return self._partial.rename(self._directory)

    def discard(self) -> None:
        """Removes what was recorded."""
        for video in self._videos.values():
            video.close()
        shutil.rmtree(self._partial, ignore_errors=True)


def list_recordings(output_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories of an output directory's whole recordings, by name.

    Raises:
        FileNotFoundError: nothing was recorded there.
    """
    folder = output_dir / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"no {FOLDER}/ in {output_dir}; record with `scripts/evaluate.py closed-loop --record`")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.endswith(PARTIAL))


def open_recording(directory: pathlib.Path) -> Recording:
    """Returns a recording; its videos are looked at only for their number of frames.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: its parts are broken or do not fit together; the message says which.
    """
    for name in (FACTS_FILE, COLUMNS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} is no recording: it has no {name}")
    facts = _facts(directory / FACTS_FILE)
    proprio, action = _columns(directory / COLUMNS_FILE, facts["generation"])
    paths = {camera.name: directory / f"{camera.name}.mp4" for camera in CAMERAS}
    for path in paths.values():
        num_frames = videos.count_frames(path)
        if num_frames != len(action):
            raise ValueError(f"{path} has {num_frames} frames for {len(action)} actions")
    return Recording(directory=directory, proprio=proprio, action=action, videos=paths, **facts)


def _facts(path: pathlib.Path) -> dict:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken text and broken JSON are ValueErrors
        raise ValueError(f"{path} is no JSON: {error}") from error
    version = facts.get("format_version") if isinstance(facts, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} is of format version {version}; this version reads {FORMAT_VERSION}")
    for name, kind in _TYPES.items():
        value = facts.get(name)
        fits = type(value) in (int, float) if kind is float else type(value) is kind
        if not fits:
            raise ValueError(f"{path}: {name} must be a {kind.__name__}; got {value!r}")
    if facts["generation"] not in PROPRIO:
        raise ValueError(f"{path}: no generation {facts['generation']!r}; known: {', '.join(PROPRIO)}")
    return {name: facts[name] for name in _TYPES}


def _columns(path: pathlib.Path, generation: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            proprio, action = stored["proprio"], stored["action"]
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold the arrays proprio and action: {error}") from error
    for name, rows, size in (("proprio", proprio, PROPRIO[generation].size), ("action", action, ACTION.size)):
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape != (len(action), size) or not len(rows):
            raise ValueError(
                f"{path}: {name} must be float32 [{len(action) or 'steps'}, {size}]; got {rows.dtype} "
                f"{list(rows.shape)}"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity")
    return proprio, action
