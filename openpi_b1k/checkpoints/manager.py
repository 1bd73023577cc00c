"""Writes checkpoints in the background and reads them back, onto any mesh.

A checkpoint is one directory, named by completed steps, that appears when all of it is written: Orbax writes arrays and
our files into `<steps>.orbax-checkpoint-tmp` and renames it. See `contents.py` for what it holds.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from openpi_b1k.checkpoints import openpi_rules, orbax_tree
from openpi_b1k.config.train import CheckpointConfig
from openpi_b1k.typing import Params, PyTree

logger = logging.getLogger(__name__)

PARAMS, TRAIN_STATE, ASSETS = "params", "train_state", "assets"


class _FilesHandler(ocp.CheckpointHandler):
    """Writes plain files as part of a checkpoint, so that they appear with its arrays or not at all."""

    def save(self, directory: Any, args: "_Files") -> None:  # Any: etils' path type, which Orbax hands over
        if jax.process_index() == 0:
            for name, content in args.files.items():
                first, _, rest = name.partition("/")
                path = directory / rest if first == ASSETS else directory.parent / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def restore(self, directory: Any, args: "_Files | None" = None) -> None:  # Any: as above
        raise NotImplementedError("files of a checkpoint are read by openpi_b1k.checkpoints.contents")


@ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Files(ocp.args.CheckpointArgs):
    files: dict[str, bytes]


class CheckpointManager:
    """Saves checkpoints of one run and keeps those that the config asks for."""

    def __init__(self, run: pathlib.Path, config: CheckpointConfig) -> None:
        """Opens a run's directory, making it if needed and removing half-written checkpoints."""
        keep: list[Any] = [ocp.checkpoint_managers.LatestN(config.keep_last)]  # Any: Orbax's policies
        if config.keep_every is not None:
            keep.append(ocp.checkpoint_managers.EveryNSteps(config.keep_every))
        self._manager = ocp.CheckpointManager(
            run.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                save_root_metadata=False,
                # Our files are written while `save` runs, so the directories must be there by then.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def save(self, step: int, weights: Params, rest: dict[str, PyTree], files: dict[str, bytes]) -> None:
        """Starts to write a checkpoint; returns when the arrays have been copied off the devices.

        Waits for the one before, so that at most one copy of the state is in host memory.

        Args:
            step: completed steps.
            weights: the parameters to act with, under our names.
            rest: what training needs besides; live parameters under `params`, if they are not the weights.
            files: {path inside the checkpoint: content}.

        Raises:
            Exception: what went wrong in the background while the one before was written.
        """
        self._manager.wait_until_finished()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.PyTreeSave(_params_item(weights)),
                    TRAIN_STATE: ocp.args.PyTreeSave(_train_state_item(rest)),
                    ASSETS: _Files(files),
                }
            ),
            force=True,
        )
        logger.info("saving checkpoint %s", self._manager.directory / str(step))

    def check(self) -> None:
        """Raises what went wrong in the background since the last save, if anything did."""
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
            Exception: what went wrong while it was written.
        """
        self._manager.wait_until_finished()
        self._manager.close()


def restore(checkpoint: pathlib.Path, weights: Params, rest: dict[str, PyTree]) -> tuple[Params, dict[str, PyTree]]:
    """Returns what `CheckpointManager.save` was given, read straight into shards.

    Args:
        checkpoint: a checkpoint's directory.
        weights: abstract weights, each leaf a ShapeDtypeStruct with its sharding; the mesh may be another.
        rest: the same for what training needs besides.

    Raises:
        FileNotFoundError: there is no train state, as in a checkpoint that was exported.
    """
    if not (checkpoint / TRAIN_STATE).is_dir():
        raise FileNotFoundError(
            f"{checkpoint} has no {TRAIN_STATE}/, so training cannot continue from it; start from its weights with "
            f"--weights {checkpoint}"
        )
    params_item = orbax_tree.read(checkpoint / PARAMS, _params_item(weights))
    rest_item = orbax_tree.read(checkpoint / TRAIN_STATE, _train_state_item(rest))
    if "params" in rest_item:
        rest_item |= {"params": _params_of({"params": rest_item["params"]})}
    return _params_of(params_item), rest_item


def _params_item(params: Params) -> dict[str, PyTree]:
    return openpi_rules.with_value_leaves(openpi_rules.to_openpi(params))


def _params_of(item: dict[str, PyTree]) -> Params:
    return openpi_rules.from_openpi(openpi_rules.without_value_leaves(item))


def _train_state_item(rest: dict[str, PyTree]) -> dict[str, PyTree]:
    return rest | _params_item(rest["params"]) if "params" in rest else rest
