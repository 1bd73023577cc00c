"""What a client's message means: who asks, for how many environments, and the raw samples in it.

The data tell, not a flag: `robot_r1::proprio` [p] is the evaluator of 2025, [n, p] that of 2026 with n environments;
`observation/state` is openpi's own client. The size p tells the generation of the robot's state, see `robots/r1pro.py`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA, SourceConfig
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.serving import protocol
from openpi_b1k.serving.protocol import ProtocolError, shown

Observation = dict[str, Any]  # Any: arrays and scalars as the simulator sends them

OPENPI_STATE = "observation/state"
OPENPI_IMAGES = {
    "head": "observation/egocentric_camera",
    "left_wrist": "observation/wrist_image_left",
    "right_wrist": "observation/wrist_image_right",
}
"""Source: openpi-comet `policies/b1k_policy.py`; the state there is the raw proprio vector."""
MAX_ENVIRONMENTS = 256
MAX_REPLAY = 1000


@dataclasses.dataclass(frozen=True)
class Environment:
    """One environment's part of a request."""

    observation: Observation
    """The evaluator's keys, unbatched."""
    task_id: int | None = None
    prompt: str | None = None
    """What the client wants the policy to be told."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A message that wants a reply."""

    environments: tuple[Environment, ...]
    kind: Literal["2025", "2026", "openpi"]
    """Whose: it decides the reply's keys and shapes."""
    chunk_size: int | None = None
    """How many actions the client would replay without asking."""


def parse(message: dict[str, Any]) -> Request | None:
    """Returns what a message asks for, or None where it is a reset.

    Raises:
        ProtocolError: it is neither an observation nor a reset, or its parts do not fit together.
    """
    if protocol.RESET in message:
        return None
    if protocol.PROPRIO in message:
        proprio = _array(message, protocol.PROPRIO)
        if proprio.ndim == 1:
            return Request((_environment(message),), "2025", _chunk_size(message))
        if proprio.ndim == 2:
            return Request(_unstacked(message, len(proprio)), "2026", _chunk_size(message))
        raise ProtocolError(
            f"{protocol.PROPRIO!r} must be [entries], or [environments, entries]; got {list(proprio.shape)}"
        )
    if OPENPI_STATE in message:
        return Request((_openpi_environment(message),), "openpi")
    raise ProtocolError(
        f"an observation has {protocol.PROPRIO!r}, or {OPENPI_STATE!r} from openpi's client, and a reset has "
        f"{protocol.RESET!r}; this message has: {_listed(message)}"
    )


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
        ValueError: one of them has another shape or type.
    """
    keys = {name: f"{robot.camera(name).simulator_name}::rgb" for name in source.cameras}
    depth_keys = {}
    if "depth" in source.modalities:
        depth_keys[EXTRA_CAMERA] = f"{robot.camera(EXTRA_CAMERA).simulator_name}::depth_linear"
    for key in (protocol.PROPRIO, *keys.values(), *depth_keys.values()):
        if key not in observation:
            raise KeyError(f"the observation has no {key!r}; it has: {_listed(observation)}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused where it matters
        proprio = _array(observation, protocol.PROPRIO).astype(np.float32)
    sample = {
        "proprio": proprio,
        "images": {name: _image(observation, key) for name, key in keys.items()},
        "prompt": prompt,
    }
    if depth_keys:
        sample["depth"] = {name: _depth(observation, key) for name, key in depth_keys.items()}
    return sample


def _environment(message: Observation) -> Environment:
    task_id = message.get(protocol.TASK_ID)
    return Environment(message, None if task_id is None else _integer(task_id, protocol.TASK_ID), _prompt(message))


def _unstacked(message: Observation, num: int) -> tuple[Environment, ...]:
    """Returns each environment's part of a message whose arrays have a leading axis of environments."""
    if not 1 <= num <= MAX_ENVIRONMENTS:
        raise ProtocolError(f"a request may be for 1 to {MAX_ENVIRONMENTS} environments; got {num}")
    stacked = {key: value for key, value in message.items() if isinstance(value, np.ndarray)}
    for key, value in stacked.items():
        if value.ndim == 0 or len(value) != num:
            raise ProtocolError(
                f"{protocol.PROPRIO!r} is of {num} environments, so every array needs {num} as its first size; "
                f"{shown(key)} is {list(value.shape)}"
            )
    task_ids = message.get(protocol.TASK_ID)
    if task_ids is not None and protocol.TASK_ID not in stacked:
        raise ProtocolError(f"{protocol.TASK_ID!r} of {num} environments must be an array; got {shown(task_ids)}")
    prompts = message.get(protocol.PROMPT)
    prompts = prompts if isinstance(prompts, list) else [prompts] * num
    if len(prompts) != num:
        raise ProtocolError(f"{protocol.PROMPT!r} must be one text or {num}; got {len(prompts)}")
    parts = ({key: value[i] for key, value in stacked.items()} for i in range(num))
    return tuple(
        _environment(part | ({} if prompt is None else {protocol.PROMPT: prompt}))
        for part, prompt in zip(parts, prompts, strict=True)
    )


def _openpi_environment(message: Observation) -> Environment:
    """Returns an openpi client's observation under the evaluator's keys."""
    observation = {key: message[key] for key in (protocol.TASK_ID, protocol.PROMPT) if key in message}
    observation[protocol.PROPRIO] = message[OPENPI_STATE]
    for camera in CAMERAS:
        key = OPENPI_IMAGES[camera.name]
        if key in message:
            observation[f"{camera.simulator_name}::rgb"] = _openpi_image(_array(message, key))
    return _environment(observation)


def _openpi_image(image: np.ndarray) -> np.ndarray:
    """Returns an image as the evaluator sends it: openpi takes floats in [0, 1], too, and channels in front."""
    if image.dtype.kind == "f":
        image = np.nan_to_num(255 * image).clip(0, 255).astype(np.uint8)
    return np.moveaxis(image, 0, -1) if image.ndim == 3 and image.shape[0] == 3 else image


def _array(message: Observation, key: str) -> np.ndarray:
    value = message[key]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ProtocolError(f"{key!r} must be an array of numbers; got {got}")
    return value


def _image(observation: Observation, key: str) -> np.ndarray:
    image = _array(observation, key)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.size:
        raise ProtocolError(
            f"{key!r} must be uint8 [height, width, 3 or 4] per environment; got {image.dtype} {list(image.shape)}"
        )
    return image[..., :3]


def _depth(observation: Observation, key: str) -> np.ndarray:
    depth = _array(observation, key)
    if depth.dtype.kind != "f" or depth.ndim != 2 or not depth.size:
        raise ProtocolError(
            f"{key!r} must be floats [height, width] in m per environment; got {depth.dtype} {list(depth.shape)}"
        )
    with np.errstate(over="ignore"):
        return depth.astype(np.float32)


def _prompt(message: Observation) -> str | None:
    prompt = message.get(protocol.PROMPT)
    if prompt is None:
        return None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ProtocolError(f"{protocol.PROMPT!r} must be a text that is not empty; got {shown(prompt)}")
    return str(prompt)


def _chunk_size(message: Observation) -> int | None:
    if protocol.CHUNK_SIZE not in message:
        return None
    size = _integer(message[protocol.CHUNK_SIZE], protocol.CHUNK_SIZE)
    if not 1 <= size <= MAX_REPLAY:
        raise ProtocolError(f"{protocol.CHUNK_SIZE!r} must be in [1, {MAX_REPLAY}]; got {size}")
    return size


def _integer(value: Any, key: str) -> int:
    """Returns the one whole number that a message holds under `key`, as a number or as an array of one."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.zeros(0)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise ProtocolError(f"{key!r} must be one whole number per environment; got {shown(value)}")
    return int(array.item())


def _listed(message: Observation) -> str:
    return ", ".join(sorted(map(str, message)))[:500] or "nothing"
