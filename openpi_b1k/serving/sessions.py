"""What an evaluator's message means: from its keys to the raw sample of `transforms/pipeline.py`."""

from typing import Any

import numpy as np

from openpi_b1k.robots.layout import Robot

Observation = dict[str, Any]  # Any: arrays and scalars as the simulator sends them


def raw_sample(observation: Observation, robot: Robot, cameras: tuple[str, ...], prompt: str) -> dict[str, Any]:
    """Returns one environment's raw sample.

    Args:
        observation: the evaluator's dict for one environment, unbatched: RGBA or RGB uint8 [h, w, 4 or 3] per camera
            and the proprio vector of either generation.
        robot: names the simulator's keys.
        cameras: those the policy was trained with.
        prompt: the instruction.

    Raises:
        KeyError: a camera or the proprio is missing.
    """
    keys = {name: f"{robot.camera(name).simulator_name}::rgb" for name in cameras}
    for key in ("robot_r1::proprio", *keys.values()):
        if key not in observation:
            raise KeyError(f"the observation has no {key!r}; it has: {', '.join(sorted(observation))}")
    return {
        "proprio": np.asarray(observation["robot_r1::proprio"], np.float32),
        "images": {name: np.asarray(observation[key])[..., :3] for name, key in keys.items()},
        "prompt": prompt,
    }
