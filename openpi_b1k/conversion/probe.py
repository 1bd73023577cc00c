"""Fixed inputs on which two implementations of a model are compared."""

import dataclasses
from typing import Any

import numpy as np

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.observation import Observation
from openpi_b1k.typing import Float

SEED = 0
TIME = 0.5  # a power of two: products with it round alike in whatever order they are taken
POINTS_PER_GROUP = 25
POINT_GROUPS = 16
SEGMENTATION = "segmentation"


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """One observation, what sampling starts from, and a flow time; NumPy arrays with a batch axis of one."""

    observation: Any  # Any: an Observation with NumPy arrays, which its annotations leave out
    noise: Float[np.ndarray, "b ah ad"]
    time: Float[np.ndarray, " b"]


def probe(config: TrainConfig) -> Probe:
    """Returns random inputs, the same for every call: images, state, a prompt with padding, noise and flow time."""
    model, random = config.model, np.random.default_rng(SEED)
    names = (*config.data.cameras, *((SEGMENTATION,) if SEGMENTATION in config.data.modalities else ()))
    size = (1, model.image_size, model.image_size, 3)
    points = None
    if model.point_clouds:
        points = random.normal(size=(1, POINT_GROUPS, POINTS_PER_GROUP, 3)).astype(np.float32)
    num_tokens = model.max_prompt_tokens
    fields: dict[str, Any] = {
        "images": {name: random.integers(0, 256, size, np.uint8) for name in names},
        "image_masks": {name: np.ones(1, bool) for name in names},
        "state": random.uniform(-1, 1, (1, model.action_dim)).astype(np.float32),
        "prompt_tokens": random.integers(0, model.vocab_size, (1, num_tokens)).astype(np.int32),
        "prompt_mask": np.arange(num_tokens)[None] < max(1, num_tokens * 3 // 4),
        "point_cloud": points,
    }
    noise = random.normal(size=(1, model.action_horizon, model.action_dim)).astype(np.float32)
    return Probe(Observation(**fields), noise, np.full(1, TIME, np.float32))
