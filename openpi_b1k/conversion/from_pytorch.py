"""A PyTorch model's file as a checkpoint: openpi's, RLinf's, LeRobot's pi05, or one converted here."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from openpi_b1k import paths
from openpi_b1k.checkpoints import safetensors
from openpi_b1k.checkpoints.manager import CheckpointManager
from openpi_b1k.checkpoints.rules import unflatten
from openpi_b1k.checkpoints.weights import open_weights, require_model
from openpi_b1k.config.train import CheckpointConfig, TrainConfig
from openpi_b1k.conversion import gate, record
from openpi_b1k.conversion.directory import new_directory, require_possible
from openpi_b1k.conversion.source import describe
from openpi_b1k.conversion.to_pytorch import num_parameters
from openpi_b1k.models.pi0 import Model

BYTES = 4
"""Per parameter of a checkpoint."""
PREFIX = "model."
"""Of every key in a policy directory of LeRobot's."""


def convert(
    model: str,
    output: pathlib.Path,
    *,
    recipe: TrainConfig | None = None,
    norm_stats: pathlib.Path | None = None,
) -> tuple[gate.Row, ...]:
    """Writes a PyTorch model's weights as a checkpoint and returns how far both models are apart at each stage.

    Values are moved, not computed; bfloat16 becomes float32, which holds it exactly. All parameters are in host memory
    at once, 4 bytes each.

    Args:
        model: a directory with model.safetensors, that file, or an address that `paths.fetch` takes.
        output: a directory that does not exist; it appears when all is done, and not at all if anything goes wrong.
        recipe: the config, for a model that was not converted here.
        norm_stats: a file or directory; default: those beside the model.

    Raises:
        FileNotFoundError: weights, config, norm stats or tokenizer are missing.
        FileExistsError: `output` exists.
        PermissionError: `output` cannot be made.
        OSError: the disk has not enough room.
        ValueError: the weights are not the config's.
        gate.GateError: the two models do not compute the same.
    """
    require_possible(output, 0)  # before anything is downloaded
    path = paths.fetch(model)
    source = describe(path, recipe, norm_stats)
    abstract = Model(source.config.model).abstract_params()
    weights = open_weights(path, like=abstract)
    require_model(weights, abstract)
    require_possible(output, BYTES * num_parameters(weights))
    params = {name: weights.read(name).astype(np.float32, copy=False) for name in weights.leaves}
    rows = gate.check(source.config, params.__getitem__, reader(path))
    request = record.Request(model, "ema", "float32", "openpi_b1k")
    files = dataclasses.replace(source, info=dataclasses.replace(source.info, has_ema=False)).files()
    files[record.FILE] = record.to_json(request, source.config.model, rows, None).encode()
    with new_directory(output) as temporary:
        save(temporary, source.info.completed_steps, params, files)
    return rows


def reader(path: pathlib.Path) -> Callable[[str], np.ndarray]:
    """Returns a function from openpi's key to the tensor in a file, whatever comes before its keys there."""
    file = safetensors.open_file(path)
    prefix = PREFIX if all(key.startswith(PREFIX) for key in file.tensors) else ""
    return lambda key: file.read(prefix + key)


def save(directory: pathlib.Path, step: int, params: Mapping[str, np.ndarray], files: dict[str, bytes]) -> None:
    """Writes a checkpoint into an empty directory as training does, with no state to go on from.

    Args:
        directory: becomes the checkpoint.
        step: completed steps.
        params: parameters by our names; dropped from memory by the caller.
        files: {path inside the checkpoint: content}.

    Raises:
        CheckpointError: it could not be written.
    """
    run = directory / "run"
    manager = CheckpointManager(run, CheckpointConfig())
    try:
        tree = unflatten({name: jnp.asarray(array) for name, array in params.items()})
        manager.save(step, {"params": tree}, files)
    finally:
        manager.close()
    for path in (run / str(step)).iterdir():
        path.rename(directory / path.name)
    shutil.rmtree(run)
