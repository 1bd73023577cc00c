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
    suffix = config.flow_samples * model.action_horizon
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
            times = config.flow_samples if "/modulation/" in path else suffix
        case _:
            times = suffix if "action_" in path else config.flow_samples
            moves_input = part in trained_parts and "action_in" not in path and "time_mlp_in" not in path
            moves_input = moves_input or "action_out" in path
    return _Use(times, moves_input)


def _attention(config: TrainConfig, trained_parts: set[str]) -> float:
    """Returns the operations of scores and of the sums they weigh, whose gradients cost twice as much."""
    model = config.model
    vision, patches = model.vision, patches_per_image(config)
    prefix, suffix = prefix_tokens(config), config.flow_samples * model.action_horizon
    forward = {
        "vision": 4 * vision.depth * images_per_sample(config) * vision.width * patches**2,
        "vlm": 4 * (model.vlm.depth - 1) * _heads_width(model.vlm) * prefix**2,
        "action_expert": 4
        * model.vlm.depth
        * _heads_width(model.action_expert)
        * suffix
        * (prefix + model.action_horizon),
    }
    return float(sum(count * (3 if {part, *UPSTREAM[part]} & trained_parts else 1) for part, count in forward.items()))


def _heads_width(gemma: GemmaConfig) -> int:
    return gemma.num_heads * gemma.head_dim
