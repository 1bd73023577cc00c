"""The directory a run lives in: its name, whether it may be started, continued or replaced, what may differ then."""

import dataclasses
import logging
import os
import pathlib
import re
import shutil
import socket
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from openpi_b1k.checkpoints import contents
from openpi_b1k.config import serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training.distributed import agreed

logger = logging.getLogger(__name__)

SHARED_S = 60.0
"""Seconds until a directory that one machine has made must be seen on another."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+=-]*"
# Fields that say where and how a run is started, not what it computes.
UNCOMPARED = ("name", "exp_name", "checkpoint_dir", "resume", "overwrite", "hang_timeout_s", "ignore_memory_plan")
UNCOMPARED_GROUPS = ("distributed.",)
# What a checkpoint is made of: sizes, and what its numbers mean. `model.remat` only trades memory for time.
FIXED = ("model.", "data.generation", "data.cameras", "data.modalities", "data.transforms.")
FREE = ("model.remat",)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a recipe."""

    directory: pathlib.Path
    last_checkpoint: pathlib.Path | None
    """What a resumed run continues from; None starts anew."""
    is_overwriting: bool = False
    """Whether what is in the directory is to be deleted."""


def choose(config: TrainConfig) -> Run:
    """Returns the run a config means, without touching it. Every process gets the same answer.

    Raises:
        FileExistsError: the run exists, and neither resume nor overwrite is asked for.
        FileNotFoundError: there is nothing to resume.
        ValueError: the name cannot name a directory.
    """
    recipe = pathlib.Path(config.checkpoint_dir) / config.name
    if config.exp_name is not None and not re.fullmatch(NAME_PATTERN, config.exp_name):
        raise ValueError(f"--exp-name must match {NAME_PATTERN}, as it names a directory; got {config.exp_name!r}")
    if config.resume:
        name = config.exp_name or agreed(_newest(recipe))
        if not name:
            raise FileNotFoundError(f"no run in {recipe} has a checkpoint to resume from; start one without --resume")
        return _existing(recipe, name)
    directory = recipe / (config.exp_name or agreed(time.strftime("%Y-%m-%d_%H-%M-%S")))
    # Process 0 may make the directory before a slower process looks, so only its look counts.
    if agreed("exists" if directory.exists() else "") and not config.overwrite:
        raise FileExistsError(
            f"{directory} exists; continue it with --resume, replace it with --overwrite, or choose another --exp-name"
        )
    return Run(directory, None, config.overwrite)


def create(run: Run) -> None:
    """Makes the run's directory, deleting what is there if asked: call it when everything else has been checked.

    Raises:
        FileExistsError: another run has made it since `choose` looked.
        FileNotFoundError: this process does not see what process 0 has made.
    """
    if jax.process_index() == 0:
        if run.is_overwriting and run.directory.exists():
            logger.warning("deleting %s, as --overwrite asks", run.directory)
            shutil.rmtree(run.directory)
        try:
            run.directory.mkdir(parents=True)
        except FileExistsError as error:
            raise FileExistsError(
                f"another run has just made {run.directory}; give this one a name of its own with --exp-name"
            ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run directory")
        _await(run.directory)


def _await(directory: pathlib.Path) -> None:
    """Waits until this process sees a directory that another has made."""
    deadline = time.monotonic() + SHARED_S
    # Looked up in its parent, as a network file system remembers for a while that a path was not there.
    while not (directory.parent.is_dir() and directory.name in os.listdir(directory.parent)):
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"process 0 has made {directory}, but process {jax.process_index()} ({socket.gethostname()}) does not "
                "see it: --checkpoint-dir must be a directory that all machines of a run share"
            )
        time.sleep(0.1)


def check_resumable(config: TrainConfig, stored: TrainConfig, checkpoint: pathlib.Path) -> None:
    """Compares a resumed run's config with its checkpoint's; logs what differs and may.

    Raises:
        ValueError: the model differs, or only one of them keeps a moving average.
    """
    old, new = serialize.flatten(stored), serialize.flatten(config)
    differing = {name: (old.get(name), new.get(name)) for name in old | new if old.get(name) != new.get(name)}
    fixed = [name for name in differing if name.startswith(FIXED) and name not in FREE]
    if (stored.ema_decay is None) != (config.ema_decay is None):
        fixed.append("ema_decay")
    if fixed:
        changes = "; ".join(_change(name, *differing[name]) for name in fixed)
        raise ValueError(
            f"{checkpoint} cannot be continued with another model: {changes}. Leave these as they were, or start a new "
            f"run from its weights with --weights {checkpoint}"
        )
    for name in differing.keys() - set(UNCOMPARED):
        if name.startswith(UNCOMPARED_GROUPS):
            continue
        logger.warning("resumed with a change: %s", _change(name, *differing[name]))


def check_data(info: contents.CheckpointInfo, fingerprint: str, sources: tuple[contents.SourceInfo, ...]) -> None:
    """Says so if a resumed run reads other data than before.

    Args:
        info: of the checkpoint.
        fingerprint: of all data sets found.
        sources: the data sets found.
    """
    if info.data_fingerprint != fingerprint:
        logger.warning(
            "resumed on other data; the run goes on at its position in the new order. Before: %s. Now: %s",
            "; ".join(map(str, info.sources)) or info.data_fingerprint,
            "; ".join(map(str, sources)),
        )


def check_norm_stats(stored: str, found: str, checkpoint: pathlib.Path) -> None:
    """Checks that a resumed run normalises as before; the norm stats are given as JSON.

    Raises:
        ValueError: it would not.
    """
    if stored != found:
        raise ValueError(
            f"the norm stats differ from those {checkpoint} was trained with, as data or --norm-stats have changed; "
            f"keep them with --norm-stats {checkpoint}"
        )


def _existing(recipe: pathlib.Path, name: str) -> Run:
    directory = recipe / name
    steps = contents.completed_checkpoints(directory)
    newest = agreed(str(steps[-1]) if steps else "")  # a slower file system may not show another process the last one
    if newest:
        return Run(directory, directory / newest)
    if directory.is_dir():
        raise FileNotFoundError(f"{directory} has no checkpoint to resume from; start it anew with --overwrite")
    raise FileNotFoundError(f"no run {directory} to resume; runs there: {_listed(sorted(_runs(recipe))) or 'none'}")


def _newest(recipe: pathlib.Path) -> str:
    """Returns the name of the run that saved last, or nothing if none has saved."""
    saved_at = {}
    for name in _runs(recipe):
        steps = contents.completed_checkpoints(recipe / name)
        if steps:
            saved_at[name] = contents.read_info(recipe / name / str(steps[-1])).saved_at
    return max(saved_at, key=lambda name: saved_at[name], default="")


def _runs(recipe: pathlib.Path) -> list[str]:
    return [entry.name for entry in recipe.iterdir() if entry.is_dir()] if recipe.is_dir() else []


def _change(name: str, old: Any, new: Any) -> str:  # Any: values of any config field
    return f"--{name.replace('_', '-')} was {old!r} and is {new!r}"


def _listed(values: list[Any]) -> str:  # Any: whatever has a text
    return ", ".join(map(str, values))
