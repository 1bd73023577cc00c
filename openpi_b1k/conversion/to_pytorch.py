"""A checkpoint as a directory that PyTorch models read, written one parameter at a time and shown to compute the same.

A directory has `model.safetensors`, `conversion.json`, and in openpi's layout `config.json`, `checkpoint.json` and
`assets/` as a checkpoint does, so that a policy can be served from it alone. See `lerobot.py` for the other layout.
"""

import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import tqdm

from openpi_b1k import paths
from openpi_b1k.checkpoints import pytorch_rules, safetensors
from openpi_b1k.checkpoints.weights import Weights, open_weights, require_model
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.conversion import gate, layouts, record
from openpi_b1k.conversion.directory import new_directory, require_possible
from openpi_b1k.conversion.scratch import Scratch
from openpi_b1k.conversion.source import describe
from openpi_b1k.models.pi0 import Model
from openpi_b1k.pytorch import model_file
from openpi_b1k.pytorch import weights as torch_weights

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]
DTYPES: dict[Dtype, np.dtype] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
METADATA = {"format": "pt"}
SCRATCH = "scratch"
SCRATCH_BYTES = 4
"""Per parameter."""


def convert(
    checkpoint: str,
    output: pathlib.Path,
    *,
    recipe: TrainConfig | None = None,
    dtype: Dtype = "float32",
    weights_kind: Literal["ema", "live"] = "ema",
    layout: layouts.LayoutName = "openpi",
    norm_stats: pathlib.Path | None = None,
) -> tuple[gate.Row, ...]:
    """Writes a checkpoint's weights for PyTorch and returns how far both models are apart at each stage.

    Of the weights, one parameter with all its layers is in memory at a time. Besides the output it takes 4 bytes per
    parameter on the disk until it is done.

    Args:
        checkpoint: a directory, or an address that `paths.fetch` takes.
        output: a directory that does not exist; it appears when all is done, and not at all if anything goes wrong.
        recipe: the config, for a checkpoint that does not bring its own.
        dtype: of the matrices and the table of embeddings; what is computed in float32 is stored in it.
        weights_kind: the moving average, where the run kept one, or the live weights.
        layout: openpi's, or a policy directory of LeRobot's.
        norm_stats: a file or directory; default: those of the checkpoint.

    Raises:
        FileNotFoundError: weights, config, norm stats or tokenizer are missing.
        FileExistsError: `output` exists.
        PermissionError: `output` cannot be made.
        OSError: the disk has not enough room.
        ValueError: the weights are not the config's, or the layout cannot hold the model.
        gate.GateError: the two models do not compute the same.
    """
    require_possible(output, 0)  # before anything is downloaded
    request = record.Request(checkpoint, weights_kind, dtype, layout)
    directory, arrangement = paths.fetch(checkpoint), layouts.LAYOUTS[layout]
    source = describe(directory, recipe, norm_stats)
    arrangement.require_possible(source)
    weights = open_weights(directory, kind=weights_kind)
    require_model(weights, Model(source.config.model).abstract_params())
    tensors = file_tensors(source.config.model, dtype, arrangement)
    require_possible(output, num_bytes(tensors) + SCRATCH_BYTES * num_parameters(weights))
    with new_directory(output) as temporary:
        scratch, file = Scratch(temporary / SCRATCH), temporary / safetensors.FILE
        write(weights, file, tensors, scratch, arrangement)
        logger.info("wrote %.1f MB; comparing both models", num_bytes(tensors) / 1e6)
        rows = gate.check(source.config, scratch.read, reader(file, arrangement))
        scratch.delete()
        arrangement.write(source, dtype, temporary)
        (temporary / record.FILE).write_text(record.to_json(request, source.config.model, rows, file))
    return rows


def stored_as(key: str, dtype: Dtype) -> np.dtype:
    """Returns the type a tensor is stored with: float32 where it is computed with in float32 whatever `dtype` says."""
    float32 = torch_weights.DTYPES["float32"]
    is_float32 = model_file.dtype_of(key, torch_weights.DTYPES[dtype]) == float32
    return DTYPES["float32" if is_float32 else dtype]


def file_tensors(model: ModelConfig, dtype: Dtype, layout: layouts.Layout) -> dict[str, safetensors.Entry]:
    """Returns type and shape of every tensor in the file, by its key there."""
    return {
        name: (stored_as(key, dtype), shape)
        for key, shape in pytorch_rules.keys(model).items()
        for name in layouts.names(layout, key)
    }


def num_bytes(tensors: Mapping[str, safetensors.Entry]) -> int:
    """Returns the bytes of all tensors of a file."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())


def num_parameters(weights: Weights) -> int:
    """Returns the number of entries in all parameters."""
    return sum(math.prod(leaf.shape) for leaf in weights.leaves.values())


def write(
    weights: Weights,
    file: pathlib.Path,
    tensors: Mapping[str, safetensors.Entry],
    scratch: Scratch,
    layout: layouts.Layout,
) -> None:
    """Writes every parameter in its type to the file, as tensors, and to the scratch, as it is; one at a time."""
    bar = tqdm.tqdm(desc="convert", total=num_parameters(weights), unit="", unit_scale=True, disable=None)
    with safetensors.Writer(file, tensors, METADATA) as writer, bar:
        for name, leaf in weights.leaves.items():
            array = weights.read(name).astype(leaf_dtype(name, weights, tensors, layout), copy=False)
            scratch.write(name, array)
            for key, tensor in pytorch_rules.to_pytorch(name, array):
                for stored in layouts.names(layout, key):
                    writer.write(stored, tensor)
            bar.update(math.prod(leaf.shape))
        for stored in layouts.names(layout, pytorch_rules.FILLED_WITH_ZEROS):
            dtype, shape = tensors[stored]
            writer.write(stored, np.broadcast_to(np.zeros((), dtype), shape))


def leaf_dtype(
    name: str, weights: Weights, tensors: Mapping[str, safetensors.Entry], layout: layouts.Layout
) -> np.dtype:
    """Returns the type that all tensors of one of our parameters are stored with."""
    key, _ = pytorch_rules.rule_of(name).pieces(weights.leaves[name].shape)[0]
    return tensors[layouts.names(layout, key)[0]][0]


def reader(file: pathlib.Path, layout: layouts.Layout) -> Callable[[str], np.ndarray]:
    """Returns a function from openpi's key to the tensor in a file of this layout.

    It opens the file anew each time: a mapping that stays would hold all that has been read of it.
    """

    def read(key: str) -> np.ndarray:
        return safetensors.open_file(file).read(layouts.names(layout, key)[-1])

    return read
