"""A converted model's file as a network: every tensor accounted for, and cast once to the type it is computed with."""

import fnmatch
import pathlib
from collections.abc import Mapping

import torch

from openpi_b1k.checkpoints import pytorch_rules, safetensors
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.pytorch.model import Network
from openpi_b1k.pytorch.weights import DTYPES, EMBEDDING, VISION, as_tensor

# Computed with in float32, whatever the activations are; all other tensors are cast to the activations' type.
FLOAT32 = (
    "*norm*",
    f"{VISION}embeddings.*",
    "action_*",
    "time_*",
    "state_*",
    "point_cloud.mlp_in.*",
)


def load(
    path: pathlib.Path | str,
    model_config: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Network:
    """Returns the network of a file, all of it in the memory of `device`.

    Args:
        path: `model.safetensors`, or a directory that has one.
        model_config: of the model that the file must hold.
        device: where to compute.
        dtype: of the activations; default: the config's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold exactly this model.
    """
    dtype = DTYPES[model_config.dtype] if dtype is None else dtype
    tensors = load_tensors(path, model_config, device=device, dtype=dtype)
    return Network(model_config, tensors.__getitem__, dtype)


def load_tensors(
    path: pathlib.Path | str, model_config: ModelConfig, *, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file that inference reads, each in the type it is computed with, on `device`.

    The table of embeddings keeps its type, as only a few of its rows are cast.

    Args:
        path: `model.safetensors`, or a directory that has one.
        model_config: of the model that the file must hold.
        device: where the tensors are put.
        dtype: of the activations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold exactly this model's tensors, or not as float32 or bfloat16.
    """
    file = safetensors.open_file(path)
    require_same(file.tensors, pytorch_rules.keys(model_config), path)
    tensors = {}
    for key in file.tensors:
        if key == pytorch_rules.FILLED_WITH_ZEROS:
            continue
        tensor = as_tensor(file.read(key))
        tensors[key] = tensor.to(device, tensor.dtype if key == EMBEDDING else dtype_of(key, dtype), copy=True)
    return tensors


def dtype_of(key: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the type that a tensor is computed with, where activations are of type `dtype`."""
    return torch.float32 if any(fnmatch.fnmatchcase(key, pattern) for pattern in FLOAT32) else dtype


def require_same(
    found: Mapping[str, tuple[object, tuple[int, ...]]], expected: dict[str, tuple[int, ...]], path: pathlib.Path | str
) -> None:
    """Checks that a file has the tensors it must have, {key: (type, shape)}, and no others.

    Raises:
        ValueError: it has not; the message names some of what differs.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} does not hold this model: {len(missing)} tensors are missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}; its config must be that of the model it was converted from"
        )
    for key, (dtype, shape) in found.items():
        if tuple(shape) != tuple(expected[key]):
            raise ValueError(
                f"{path} holds a model of another size: {key} is {tuple(shape)}, of this model {tuple(expected[key])}"
            )
        if str(dtype) not in DTYPES:
            raise ValueError(f"{path} holds {key} as {dtype}; {' and '.join(DTYPES)} are supported")
