"""Random numbers in the shape of demonstrations, to run everything without any data."""

import dataclasses

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA, Modality
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.base import Sample
from openpi_b1k.transforms.normalize import FieldStats, NormStats

PROMPT = "press the red button with the left gripper"
TASK = "random"
STD_NORMAL_Q99 = 2.3263478740408408


@dataclasses.dataclass(frozen=True)
class RandomDataset:
    """Raw samples of normally distributed proprio and actions and of uniform images; sample i depends on i alone."""

    robot: Robot
    proprio_size: int
    action_horizon: int
    cameras: tuple[str, ...]
    modalities: tuple[Modality, ...] = ("rgb",)
    size: int = 1024
    image_size: int = 56

    def __len__(self) -> int:
        """Returns the number of samples."""
        return self.size

    def __getitem__(self, i: int) -> Sample:
        """Returns the raw sample `i`, with the fields of B1kDataset's.

        Raises:
            IndexError: `i` is negative or not below the length.
        """
        if not 0 <= i < self.size:
            raise IndexError(f"sample {i} is outside [0, {self.size}) of the random data")
        rng = np.random.default_rng(i)
        shape = (self.image_size, self.image_size, 3)
        length = int(rng.integers(1, 2 * self.action_horizon))
        actions = rng.standard_normal((self.action_horizon, self.robot.action.size), np.float32)
        steps = np.arange(self.action_horizon)
        proprio = rng.standard_normal(self.proprio_size, np.float32)
        images = {camera: rng.integers(0, 256, shape, np.uint8) for camera in self.cameras}
        return {
            "proprio": proprio,
            "images": images,
            **self._extra(rng),
            "prompt": PROMPT,
            "skill": "",
            "actions": actions[np.minimum(steps, length - 1)],
            "is_pad": steps >= length,
            "episode": i,
            "frame": 0,
            "task": 0,
        }

    def _extra(self, rng: np.random.Generator) -> Sample:
        shape = (self.image_size, self.image_size)
        extra = {}
        if "depth" in self.modalities:
            extra["depth"] = {EXTRA_CAMERA: rng.uniform(0, 10, shape).astype(np.float32)}
        if "segmentation" in self.modalities:
            extra["segmentation"] = {EXTRA_CAMERA: rng.integers(0, 9, shape, np.uint8)}
        return extra

    def get(self, i: int, run: np.ndarray | None = None) -> Sample:
        """Returns the raw sample `i`, as `self[i]` does: nothing here is made faster by knowing the run."""
        del run
        return self[i]


def random_norm_stats(robot: Robot) -> NormStats:
    """Returns the statistics of a standard normal distribution, which is that of the random data, near enough."""

    def standard_normal(size: int) -> FieldStats:
        ones = np.ones(size)
        return FieldStats(mean=0 * ones, std=ones, q01=-STD_NORMAL_Q99 * ones, q99=STD_NORMAL_Q99 * ones)

    return NormStats(standard_normal(robot.state.size), standard_normal(robot.action.size))
