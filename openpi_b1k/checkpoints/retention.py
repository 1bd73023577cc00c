"""Which checkpoints of a run stay, and how the others go.

A checkpoint that goes is renamed before it is deleted, so that a directory named by digits is always whole.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.train import CheckpointConfig

logger = logging.getLogger(__name__)

HALF_WRITTEN, HALF_DELETED = ".orbax-checkpoint-tmp", ".deleting"


def kept(values: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Returns the completed steps of the checkpoints that stay.

    Args:
        values: {completed steps: best metric, the lower the better} of all; None where it was not measured.
        config: what to keep.
    """
    steps = sorted(values)
    every = [step for step in steps if config.keep_every is not None and step % config.keep_every == 0]
    return {*steps[-config.keep_last :], *every, *ranked(values)[: config.keep_best]}


def ranked(values: Mapping[int, float | None]) -> list[int]:
    """Returns the steps that have a value, the best first; of equal ones the earlier first."""
    measured = {step: value for step, value in values.items() if value is not None}
    return sorted(measured, key=lambda step: (measured[step], step))


def retire(run: pathlib.Path, config: CheckpointConfig) -> None:
    """Records the best checkpoint of a run in `best.json` and deletes those that need not stay."""
    values = {
        step: contents.read_info(run / str(step)).metrics.get(config.best_metric)
        for step in contents.completed_checkpoints(run)
    }
    best = ranked(values)[: min(config.keep_best, 1)]
    for step in best:
        _record(run, contents.Best(step, config.best_metric, float(values[step] or 0.0)))
    for step in sorted(values.keys() - kept(values, config)):
        _delete(run / str(step))


def clean(run: pathlib.Path) -> None:
    """Deletes what a killed run has left half written or half deleted."""
    for suffix in (HALF_WRITTEN, HALF_DELETED):
        for path in run.glob(f"*{suffix}*"):
            logger.warning("deleting %s, which was not finished when its run ended", path)
            shutil.rmtree(path)


def _record(run: pathlib.Path, best: contents.Best) -> None:
    if contents.best_checkpoint(run) != best:
        logger.info("best checkpoint: %d, with %s %.6g", best.step, best.metric, best.value)
        draft = run / f"{contents.BEST_FILE}.new"
        draft.write_text(json.dumps(dataclasses.asdict(best), indent=2) + "\n")
        draft.replace(run / contents.BEST_FILE)


def _delete(checkpoint: pathlib.Path) -> None:
    leaving = checkpoint.with_name(checkpoint.name + HALF_DELETED)
    checkpoint.rename(leaving)
    shutil.rmtree(leaving)
