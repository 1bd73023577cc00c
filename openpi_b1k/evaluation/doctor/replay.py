"""Recorded frames through the policy under a reading, and how far its chunks are from what was done."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from openpi_b1k.checkpoints.contents import Assets
from openpi_b1k.evaluation.doctor.reading import Gripper, Reading
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames
from openpi_b1k.robots.layout import Robot
from openpi_b1k.serving.policy import Policy
from openpi_b1k.transforms.base import Sample
from openpi_b1k.transforms.normalize import NormStats
from openpi_b1k.transforms.tokenize import Tokenizer

MAX_THREADS = 8
LEAST_SPREAD = 0.05
"""Of an entry, in parts of the range its limits allow: what hardly moves is not divided by almost nothing."""
LARGEST_ERROR = 5.0
"""Of one entry, in parts of its spread: a few wild numbers are no more than wrong."""


@dataclasses.dataclass(frozen=True, eq=False)
class Patient:
    """A policy, and what is needed to build it anew with something changed."""

    policy: Policy
    assets: Assets
    tokenizer: Tokenizer
    restart: Callable[[], None]
    """Has the network's noise begin anew, so that readings differ in nothing else."""
    batch_size: int = 16

    def changed(self, reading: Reading, statistics: NormStats) -> Policy:
        """Returns the policy with a reading's transforms and some statistics."""
        config = self.policy.config
        data = dataclasses.replace(config.data, transforms=reading.transforms)
        assets = dataclasses.replace(self.assets, norm_stats=statistics)
        return Policy(dataclasses.replace(config, data=data), assets, self.tokenizer, self.policy.backend)


class Replay:
    """Errors of a policy's chunks at chosen frames, by reading. Axis `n`: frames."""

    def __init__(self, patient: Patient, frames: ChosenFrames, data_statistics: Callable[[Reading], NormStats]) -> None:
        """Reads the frames, and samples nothing yet.

        Args:
            patient: the policy.
            frames: of the data it is tried on.
            data_statistics: computes the data's own statistics under a reading's transforms.

        Raises:
            ValueError: a frame cannot be read.
        """
        self.patient, self.frames = patient, frames
        self._data_statistics = data_statistics
        self._read = functools.cache(self._read_offset)
        self._sampled: dict[Reading, tuple[np.ndarray, np.ndarray]] = {}
        robot = patient.policy.robot
        self._true, self._mask = self._demonstrated()
        actions = self._true[self._mask]
        least = LEAST_SPREAD * np.ptp(np.asarray(robot.action_limits), axis=1)
        self.spread = np.maximum(actions.std(axis=0), least)
        mean = np.broadcast_to(actions.mean(axis=0), self._true.shape)
        self.mean_action_error = float(self._distance(mean, slice(None)).mean())

    def statistics(self, reading: Reading) -> NormStats:
        """Returns what a reading normalises with."""
        return self.patient.assets.norm_stats if reading.statistics == "checkpoint" else self._data_statistics(reading)

    def errors(self, reading: Reading, steps: slice) -> np.ndarray:
        """Returns the mean error of each frame's chunk, float64 [n], in parts of the actions' spread.

        Args:
            reading: how frames and chunks are understood.
            steps: of the chunk that count, so that readings are compared at the same ones.

        Raises:
            ValueError: the policy cannot be given such inputs, or gives no number.
        """
        key = reading.seen()
        if key not in self._sampled:
            self._sampled[key] = self._sample(reading)
        chunks, states = self._sampled[key]
        if not np.isfinite(chunks).all():
            raise ValueError("the policy gives actions that are no number; look at its weights (scripts/report.py)")
        policy = self.patient.changed(reading, self.statistics(reading))
        predicted = policy.finish(chunks, {"raw_state": states})
        return self._distance(_understood(predicted, reading, policy.robot), steps)

    def served_prompts(self) -> Mapping[str, str]:
        """Returns the table of prompts that serving uses; at a finer level it has none that training knew."""
        is_by_task = self.patient.policy.config.data.prompt_level == 0
        return self.patient.policy.prompts if is_by_task else {}

    def samples(self) -> list[Sample]:
        """Returns the raw samples as training reads them."""
        return self._read(0)

    def _sample(self, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """Returns normalised chunks [n, ah, ad] and the states they are relative to, [n, s]."""
        policy = self.patient.changed(reading, self.statistics(reading))
        self.patient.restart()
        shown = self._read(reading.frame_offset)
        given = [self._given(place, shown, reading) for place in range(len(shown))]
        with concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            inputs = list(pool.map(policy.prepare, given))
        chunks, size = [], self.patient.batch_size
        for first in range(0, len(inputs), size):
            part = inputs[first : first + size]
            chunks.append(policy.predict([*part, *[part[-1]] * (size - len(part))])[: len(part)])
        return np.concatenate(chunks), np.stack([one["raw_state"] for one in inputs])

    def _given(self, place: int, shown: list[Sample], reading: Reading) -> Sample:
        """Returns the raw sample of a frame under a reading."""
        recorded, cameras = self.samples()[place], self.patient.policy.config.data.cameras
        images = shown[place]["images"]
        images = {name: images[there] for name, there in zip(cameras, reading.cameras, strict=True)}
        if reading.is_bgr:
            images = {name: np.ascontiguousarray(image[..., ::-1]) for name, image in images.items()}
        prompt = self._prompt(self.frames.tasks[place], recorded["prompt"], reading)
        sample = {name: recorded[name] for name in ("depth", "segmentation") if name in recorded}
        return sample | {"proprio": recorded["proprio"], "images": images, "prompt": prompt}

    def _prompt(self, task: str, recorded: str, reading: Reading) -> str:
        table = self.served_prompts()
        names = list(table)
        if reading.rotation and task in table:
            return table[names[(names.index(task) + reading.rotation) % len(names)]]
        return recorded if reading.prompt == "recorded" else table.get(task, recorded)

    def _read_offset(self, offset: int) -> list[Sample]:
        """Returns the raw samples `offset` frames later, or at the end of the episode's window."""
        starts, rows = self.frames.index.starts, self.frames.rows
        numbers = np.clip(self.frames.numbers + offset, starts[rows], starts[rows + 1] - 1).tolist()
        with concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.frames.dataset.get, numbers))

    def _demonstrated(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what was done from each frame on, [n, ah, a], and which steps lie in the episode, [n, ah]."""
        index, columns = self.frames.index, self.frames.dataset.columns
        steps = np.arange(self.patient.policy.config.model.action_horizon)
        chunks, masks = [], []
        for number in self.frames.numbers.tolist():
            row, frame = index.locate(number)
            _, actions = columns.episode(row)
            wanted, last = frame + steps, int(index.ends[row]) - 1
            chunks.append(actions[np.minimum(wanted, last)])
            masks.append(wanted <= last)
        return np.stack(chunks), np.stack(masks)

    def _distance(self, predicted: np.ndarray, steps: slice) -> np.ndarray:
        """Returns each chunk's error, [n]: the mean over fields, and over the steps that lie in the episode."""
        layout, mask = self.patient.policy.robot.action, self._mask[:, steps]
        apart = np.minimum(np.abs(predicted - self._true) / self.spread, LARGEST_ERROR)[:, steps]
        by_field = np.stack([apart[..., layout.slice(name)].mean(axis=-1) for name in layout.names]).mean(axis=0)
        return (by_field * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)


def _understood(chunks: np.ndarray, reading: Reading, robot: Robot) -> np.ndarray:
    """Returns chunks [n, ah, a] with gripper commands and steps as a reading has them."""
    left, right = robot.action.slice("left_gripper"), robot.action.slice("right_gripper")
    chunks = chunks.copy()
    values = _gripper(chunks[..., left], chunks[..., right], reading.gripper)
    chunks[..., left], chunks[..., right] = values
    if reading.kept_steps is not None:
        chunks[:, reading.kept_steps :] = chunks[:, reading.kept_steps - 1 : reading.kept_steps]
    return np.roll(chunks, reading.action_lag, axis=1)  # what comes in at the ends does not count: `Reading.steps`


def _gripper(left: np.ndarray, right: np.ndarray, kind: Gripper) -> tuple[np.ndarray, np.ndarray]:
    if kind == "swapped":
        return right.copy(), left.copy()
    if kind == "negated":
        return -left, -right
    return (2 * left - 1, 2 * right - 1) if kind == "in [0, 1]" else (left.copy(), right.copy())
