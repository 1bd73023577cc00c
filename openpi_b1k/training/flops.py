"""Operations that the model needs for a sample, for its utilisation of the devices (MFU).

Counted are the multiplications and additions of matrix products, forward and backward, once each: what is computed
twice to save memory is not. A kernel that is applied to a token costs 2 operations per entry, as much again for the
gradient of the token, if anything before it is trained, and as much again for its own, if it is trained itself. Norms,
softmax and other elementwise work are left out. Source of the convention: PaLM, arXiv 2204.02311, appendix B.
"""

import dataclasses
import math

from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import GemmaConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training import trainable
from openpi_b1k.training.plan_activations import (
    images_per_sample,
    model_of,
    patches_per_image,
    points_per_sample,
    prefix_tokens,
    suffix_tokens,
)

UPSTREAM = {
    "vision": (),
    "point_cloud": (),
    "vlm": ("vision", "point_cloud"),
    "suffix": (),
    "action_expert": ("vision", "point_cloud", "vlm", "suffix"),
}
"""Parts of the network whose output enters a part, directly or not."""


@dataclasses.dataclass(frozen=True)
class _Use:
    """How often a sample uses a kernel, and what is trained."""

    times: float
    """Tokens it is applied to, over all of its stacked layers' mean."""
    moves_input: bool
    """Whether a gradient of its input is needed."""


def flops_per_sample(config: TrainConfig) -> float:
    """Returns the operations of one sample's forward and backward pass, with all its flow samples."""
    leaves = flatten(model_of(config.model).abstract_params())
    kernels = {path: math.prod(leaf.shape) for path, leaf in leaves.items() if _is_product(path)}
    trained_parts = {path.split("/")[0] for path in leaves if trainable.is_trained(path, config)}
    total = 0.0
    for path, size in kernels.items():
        use = _use(config, path, trained_parts)
        passes = 1 + use.moves_input + trainable.is_trained(path, config)
        total += 2 * size * use.times * passes
    return total + _attention(config, trained_parts)


def _is_product(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name == "kernel" or name.startswith(trainable.ADAPTER_PREFIX)


def _use(config: TrainConfig, path: str, trained_parts: set[str]) -> _Use:
    """Returns how a sample uses a kernel."""
    model, part = config.model, path.split("/", maxsplit=1)[0]
    is_in_layers = "/layers/" in path
    moves_input = (part in trained_parts and is_in_layers) or any(name in trained_parts for name in UPSTREAM[part])
    match part:
        case "vision":
            times = images_per_sample(config) * patches_per_image(config)
            moves_input = part in trained_parts and path != "vision/embedding/kernel"
        case "point_cloud":
            times = points_per_sample(config)
            moves_input = part in trained_parts and "mlp_in" not in path
        case "vlm":
            times = float(prefix_tokens(config))
            if "/kv/" not in path:  # what follows keys and values in the last layer is not computed
                times *= 1 - 1 / model.vlm.depth
        case "action_expert":
            times = config.flow_samples * (1 if "/modulation/" in path else suffix_tokens(config))
        case _:
            return _use_in_suffix(config, path.split("/")[1], part in trained_parts)
    return _Use(times, moves_input)


def _use_in_suffix(config: TrainConfig, name: str, is_trained: bool) -> _Use:
    """Returns how a sample uses the kernel of a projection."""
    match name:
        case "state_proj":
            times = 1
        case "time_mlp_in" | "time_mlp_out":
            times = config.flow_samples
        case _:
            times = config.flow_samples * config.model.action_horizon
    is_first = name in ("state_proj", "action_in_proj", "time_mlp_in")  # its input is state, noise or time
    return _Use(times, moves_input=name == "action_out_proj" or (is_trained and not is_first))


def _attention(config: TrainConfig, trained_parts: set[str]) -> float:
    """Returns the operations of scores and of the sums they weigh.

    Gradients cost as much again for queries and weights, and as much again for keys and values: those of a frozen
    prefix need none.
    """
    model = config.model
    vision, patches = model.vision, patches_per_image(config)
    prefix, suffix = prefix_tokens(config), suffix_tokens(config)
    moved = {part: bool({part, *upstream} & trained_parts) for part, upstream in UPSTREAM.items()}
    of_vision = 4 * vision.depth * images_per_sample(config) * vision.width * patches**2
    of_vlm = 4 * (model.vlm.depth - 1) * _heads_width(model.vlm) * prefix**2
    per_key = 4 * model.vlm.depth * _heads_width(model.action_expert) * config.flow_samples * suffix
    to_prefix = per_key * prefix * (1 + moved["action_expert"] + moved["vlm"])
    to_suffix = per_key * suffix * (1 + 2 * moved["action_expert"])
    return float(of_vision * (1 + 2 * moved["vision"]) + of_vlm * (1 + 2 * moved["vlm"]) + to_prefix + to_suffix)


def _heads_width(gemma: GemmaConfig) -> int:
    return gemma.num_heads * gemma.head_dim
