"""What an evaluator's message means: from its keys to the raw sample of `transforms/pipeline.py`."""

from typing import Any

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA, SourceConfig
from openpi_b1k.robots.layout import Robot

Observation = dict[str, Any]  # Any: arrays and scalars as the simulator sends them


def raw_sample(observation: Observation, robot: Robot, source: SourceConfig, prompt: str) -> dict[str, Any]:
    """Returns one environment's raw sample.

    Args:
        observation: the evaluator's dict for one environment, unbatched: RGBA or RGB uint8 [h, w, 4 or 3] per camera
            and the proprio vector of either generation; depth float32 [h, w] in m where the policy sees it.
        robot: names the simulator's keys.
        source: the data the policy was trained on, whose cameras and modalities it wants. Labels of the current skill's
            objects, the segmentation, are known to no evaluator: that image will be masked.
        prompt: the instruction.

    Raises:
        KeyError: a camera, its depth or the proprio is missing.
    """
    keys = {name: f"{robot.camera(name).simulator_name}::rgb" for name in source.cameras}
    depth_keys = {}
    if "depth" in source.modalities:
        depth_keys[EXTRA_CAMERA] = f"{robot.camera(EXTRA_CAMERA).simulator_name}::depth_linear"
    for key in ("robot_r1::proprio", *keys.values(), *depth_keys.values()):
        if key not in observation:
            raise KeyError(f"the observation has no {key!r}; it has: {', '.join(sorted(observation))}")
    sample = {
        "proprio": np.asarray(observation["robot_r1::proprio"], np.float32),
        "images": {name: np.asarray(observation[key])[..., :3] for name, key in keys.items()},
        "prompt": prompt,
    }
    if depth_keys:
        sample["depth"] = {name: np.asarray(observation[key], np.float32) for name, key in depth_keys.items()}
    return sample
