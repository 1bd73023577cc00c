"""Writes checkpoints in the background and reads them back, onto any mesh.

A checkpoint is one directory, named by completed steps. Orbax writes arrays and our files into
`<steps>.orbax-checkpoint-tmp`; that is verified (`verification.py`) and then renamed, and only after that older
checkpoints go (`retention.py`). See `contents.py` for what it holds.
"""

import concurrent.futures
import dataclasses
import logging
import math
import pathlib
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from openpi_b1k.checkpoints import contents, openpi_rules, orbax_tree, retention, verification
from openpi_b1k.checkpoints.failures import CheckpointError, CheckpointTimeoutError, failure, tree_bytes
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


@dataclasses.dataclass(frozen=True)
class _Save:
    """A checkpoint that is being written."""

    step: int
    num_bytes: int
    arrays: dict[str, dict[str, str]]
    """Of each item, what `verification.describe` says."""
    started: float
    """On the monotonic clock, in seconds."""


class CheckpointManager:
    """Saves checkpoints of one run and keeps those that the config asks for. Every process has one and calls the same.

    After a CheckpointTimeoutError threads of Orbax may hang on in the file system; the process then does not end by
    itself when its main thread does: leave it by `os._exit`.
    """

    stall_s: float
    """Seconds for which the last `save` kept its caller waiting."""

    def __init__(self, run: pathlib.Path, config: CheckpointConfig) -> None:
        """Opens a run's directory, making it if needed and removing half-written checkpoints."""
        self.stall_s = 0.0
        self._run, self._config = run.absolute(), config
        self._save: _Save | None = None
        self._completion: concurrent.futures.Future[None] | None = None
        self._is_abandoned = False
        if jax.process_index() == 0:
            self._run.mkdir(parents=True, exist_ok=True)
            retention.clean(self._run)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(
                timeout_secs=math.ceil(config.timeout_s),
                # Called when all is written and the directory still has its temporary name.
                post_finalization_callback=self._verify,
                # Our files are written while `save` runs, so the directories must be there by then.
                create_directories_asynchronously=False,
            ),
        )

    def save(
        self, step: int, items: dict[str, PyTree], files: dict[str, bytes], metrics: dict[str, float] | None = None
    ) -> None:
        """Starts to write a checkpoint; returns when the arrays have been copied off the devices.

        Waits for the one before, so that at most one copy of the state is in host memory.

        Args:
            step: completed steps.
            items: trees of arrays by name: `params`, the dense weights to act with under our names, `train_state`,
                in which a tree `params` holds the live weights that are trained, and others, which stay as they are.
            files: {path inside the checkpoint: content}.
            metrics: of the held-out episodes at this step; without them it is no candidate for the best.

        Raises:
            CheckpointError: it cannot be written, or the one before could not.
            CheckpointTimeoutError: the one before has not been finished in time.
        """
        started = time.monotonic()
        self._finish()
        stored = {name: _stored(name, tree) for name, tree in items.items()}
        arrays = {name: verification.describe(tree) for name, tree in stored.items()}
        self._save = _Save(step, tree_bytes(stored), arrays, started)
        trees = {name: ocp.args.PyTreeSave(tree) for name, tree in stored.items()}
        assets = _Files(contents.with_metrics(files, metrics or {}))
        try:
            self._checkpointer.save(
                self._run / str(step), args=ocp.args.Composite(**trees, **{ASSETS: assets}), force=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error
        self._completion = self._executor.submit(self._complete, self._save)
        self.stall_s = time.monotonic() - started
        logger.info("saving checkpoint %s; the loop stood still for %.2f s", self._run / str(step), self.stall_s)

    def check(self) -> None:
        """Raises what has gone wrong in the background; call it after each step, it does not wait.

        Raises:
            CheckpointError: the checkpoint could not be written; earlier ones are kept.
            CheckpointTimeoutError: it has not been finished in time.
        """
        if self._completion is not None and (self._completion.done() or self._seconds_left() <= 0):
            self._finish()

    def close(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
            CheckpointError: it could not be written; earlier ones are kept.
            CheckpointTimeoutError: it has not been finished in time.
        """
        try:
            self._finish()
        finally:
            if not self._is_abandoned:
                self._checkpointer.close()
            self._executor.shutdown(wait=not self._is_abandoned)

    def _seconds_left(self) -> float:
        return 0.0 if self._save is None else self._save.started + self._config.timeout_s - time.monotonic()

    def _finish(self) -> None:
        """Waits for the save that is under way, if one is, and raises what went wrong with it."""
        completion, self._completion = self._completion, None
        if completion is None:
            return
        done, _ = concurrent.futures.wait([completion], max(self._seconds_left(), 0.0))
        if not done:
            self._is_abandoned = True
            raise self._failure(None)
        error = completion.exception()
        if error is not None:
            raise self._failure(error) from error

    def _failure(self, error: BaseException | None) -> CheckpointError:
        """Returns the named error for what went wrong with a save; None: it took too long."""
        save = self._save
        if save is None:
            raise RuntimeError("no checkpoint is being written")
        if error is None or isinstance(error, TimeoutError):
            return CheckpointTimeoutError(
                f"checkpoint {save.step} was not written within --checkpoints.timeout-s {self._config.timeout_s:g}; "
                f"checkpoints saved before are kept in {self._run}"
            )
        return failure(error, self._run, save.step, save.num_bytes)

    def _verify(self) -> None:
        """Looks at the checkpoint before it gets its name; an error leaves it half-written."""
        save = self._save
        if save is None:
            raise RuntimeError("no checkpoint is being written")
        verification.verify(self._run / f"{save.step}{retention.HALF_WRITTEN}", save.arrays)

    def _complete(self, save: _Save) -> None:
        """Waits in the background until a checkpoint has its name; then lets older ones go."""
        self._checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            retention.retire(self._run, self._config)
        seconds = time.monotonic() - save.started
        logger.info("checkpoint %d is complete, %.2f GB in %.1f s", save.step, save.num_bytes / 1e9, seconds)


def restore(checkpoint: pathlib.Path, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    """Returns the items that `CheckpointManager.save` was given, read straight into shards.

    Args:
        checkpoint: a checkpoint's directory.
        abstract: the items wanted, each leaf a ShapeDtypeStruct with its sharding; the mesh may be another.

    Raises:
        FileNotFoundError: an item is not there, as train_state in a checkpoint that was exported.
        ValueError: an item holds other arrays than are wanted.
        IncompleteCheckpointError: the checkpoint is not whole.
    """
    for name in abstract:
        if not (checkpoint / name).is_dir():
            raise FileNotFoundError(
                f"{checkpoint} has no {name}/, so training cannot continue from it; start from its weights with "
                f"--weights {checkpoint}"
            )
    verification.check(checkpoint)
    for name, tree in abstract.items():
        verification.require_same(checkpoint, name, _stored(name, tree))
    return {
        name: _given(name, orbax_tree.read(checkpoint / name, _stored(name, tree))) for name, tree in abstract.items()
    }


def _stored(name: str, tree: PyTree) -> PyTree:
    """Returns an item as it lies on disk: weights under openpi's names."""
    if name == PARAMS:
        return _params_item(tree)
    if name == TRAIN_STATE and PARAMS in tree:
        return tree | _params_item(tree[PARAMS])
    return tree


def _given(name: str, tree: PyTree) -> PyTree:
    """Returns what `_stored` was given."""
    if name == PARAMS:
        return _params_of(tree)
    if name == TRAIN_STATE and PARAMS in tree:
        return tree | {PARAMS: _params_of({PARAMS: tree[PARAMS]})}
    return tree


def _params_item(params: Params) -> dict[str, PyTree]:
    return openpi_rules.with_value_leaves(openpi_rules.to_openpi(params))


def _params_of(item: dict[str, PyTree]) -> Params:
    return openpi_rules.from_openpi(openpi_rules.without_value_leaves(item))
