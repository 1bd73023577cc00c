"""What an ablation takes away from the observations before they are sent."""

from typing import Any

import numpy as np

from openpi_b1k.evaluation.closed_loop.players import Blind
from openpi_b1k.evaluation.closed_loop.settings import Ablation
from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.sample.world import GOALS


def unchanged(observation: dict[str, Any]) -> dict[str, Any]:
    """Returns the observation."""
    return observation


def with_other_prompt(observation: dict[str, Any]) -> dict[str, Any]:
    """Returns the observation with the prompt of the next goal."""
    [number] = observation["task_id"]
    return observation | {"prompt": GOALS[(int(number) + 1) % len(GOALS)].prompt}


def black(observation: dict[str, Any]) -> dict[str, Any]:
    """Returns the observation with black images and no depth."""
    keys = [f"{camera.simulator_name}::{kind}" for camera in CAMERAS for kind in ("rgb", "depth_linear")]
    return observation | {key: np.zeros_like(observation[key]) for key in keys if key in observation}


BLINDS: dict[Ablation, Blind] = {
    "none": unchanged,
    "prompt": with_other_prompt,
    "images": black,
    "weights": unchanged,
    "demonstration": unchanged,
}
"""The weights and the demonstration are another policy, which sees all there is to see."""
