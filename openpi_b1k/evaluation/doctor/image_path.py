"""Whether serving gives the network what training gives it: the same frame through both, compared to the bit."""

import numpy as np

from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.evaluation.doctor.findings import Finding
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import PROPRIO
from openpi_b1k.serving import protocol, requests
from openpi_b1k.serving.policy import ModelSample, Policy
from openpi_b1k.transforms.base import Sample

NUM_FRAMES = 4
COMPARED = ("state", "prompt_tokens", "prompt_mask", "point_cloud")


def check(policy: Policy, frames: ChosenFrames) -> list[Finding]:
    """Returns the differences between what training reads and what serving makes of the evaluator's message.

    Raises:
        ValueError: a frame cannot be read, or the policy refuses one.
    """
    dataset = frames.dataset
    stored = B1kDataset(
        dataset.index,
        dataset.columns,
        EpisodeFrames(dataset.index, None),
        dataset.skills,
        dataset.prompts,
        policy.config.model.action_horizon,
    )
    lines = []
    places = np.linspace(0, len(frames.numbers) - 1, min(NUM_FRAMES, len(frames.numbers))).astype(int)
    for number in frames.numbers[places].tolist():
        trained, whole = dataset.get(number), stored.get(number)
        served = requests.raw_sample(
            observation(whole, policy.robot, policy.config.data.generation),
            policy.robot,
            policy.config.data,
            trained["prompt"],
        )
        unlabelled = {name: value for name, value in trained.items() if name not in ("actions", "is_pad")}
        where = f"episode {trained['episode']}, frame {trained['frame']}"
        differing = _differences(policy.prepare(unlabelled), policy.prepare(served), policy.config.data.cameras)
        lines += [f"{where}: {difference}" for difference in differing]
    return [Finding("image_path", tuple(lines))] if lines else []


def observation(sample: Sample, robot: Robot, generation: str) -> dict[str, np.ndarray]:
    """Returns what the evaluator of a generation would send for a raw sample at the cameras' own size, unbatched."""
    layout, kept = PROPRIO[generation], robot.proprio(len(sample["proprio"]))
    proprio = np.zeros(layout.size, np.float32)
    for name in kept.names:
        if name in layout.names:
            proprio[layout.slice(name)] = sample["proprio"][kept.slice(name)]
    sent: dict[str, np.ndarray] = {protocol.PROPRIO: proprio}
    for camera, image in sample["images"].items():
        opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
        sent[f"{robot.camera(camera).simulator_name}::rgb"] = np.concatenate([image, opaque], axis=-1)
    for camera, depth in sample.get("depth", {}).items():
        sent[f"{robot.camera(camera).simulator_name}::depth_linear"] = depth
    return sent


def _differences(trained: ModelSample, served: ModelSample, cameras: tuple[str, ...]) -> list[str]:
    pairs = {f"image {name}": (trained["images"][name], served["images"][name]) for name in cameras}
    pairs |= {name: (trained[name], served[name]) for name in COMPARED if name in trained}
    return [_difference(name, one, other) for name, (one, other) in pairs.items() if not np.array_equal(one, other)]


def _difference(name: str, trained: np.ndarray, served: np.ndarray) -> str:
    if trained.shape != served.shape:
        return f"{name} is {list(trained.shape)} in training and {list(served.shape)} in serving"
    apart = np.abs(trained.astype(np.float64) - served.astype(np.float64)).max()
    return f"{name} differs by up to {apart:.3g} between training and serving"
