"""What can go wrong with writing a checkpoint, and the room that one needs."""

import errno
import pathlib
import re
import shutil

import jax

from openpi_b1k.checkpoints import orbax_tree
from openpi_b1k.typing import PyTree

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_PATTERN = r"No space left|ENOSPC|Disk quota exceeded|EDQUOT|File too large|EFBIG"
MARGIN = 1.05
"""Of the arrays' bytes, for what Orbax writes besides; it compresses, so a checkpoint is rarely larger than them."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; those before are kept."""


class CheckpointTimeoutError(CheckpointError):
    """A checkpoint was not written in time."""


def tree_bytes(tree: PyTree) -> int:
    """Returns the bytes of all arrays of a tree, abstract or not, over all devices, each part counted once."""
    return sum(map(orbax_tree.num_bytes, jax.tree.leaves(tree)))


def check_space(run: pathlib.Path, num_bytes: int) -> None:
    """Checks that the disk has room for one more checkpoint.

    Args:
        run: the run's directory, which need not exist.
        num_bytes: of the checkpoint's arrays, see `tree_bytes`.

    Raises:
        ValueError: it has not.
    """
    free = _free_bytes(run)
    if free < num_bytes * MARGIN:
        raise ValueError(
            f"one checkpoint takes {num_bytes * MARGIN / 1e9:.2f} GB, and the disk of {run} has {free / 1e9:.2f} GB "
            "free: make room, or choose another disk with --checkpoint-dir"
        )


def failure(error: BaseException, run: pathlib.Path, step: int, num_bytes: int) -> CheckpointError:
    """Returns the error to raise for a checkpoint that could not be written because of `error`."""
    reason = f"{type(error).__name__}: {error}"
    is_full = isinstance(error, OSError) and error.errno in FULL_ERRNOS
    if is_full or re.search(FULL_PATTERN, str(error)):
        reason = (
            f"the disk is full or a limit reached: it takes {num_bytes * MARGIN / 1e9:.3f} GB, and the disk of {run} "
            f"has {_free_bytes(run) / 1e9:.3f} GB free; make room and continue with --resume ({reason})"
        )
    return CheckpointError(f"checkpoint {step} could not be written; those before are kept in {run}: {reason}")


def _free_bytes(path: pathlib.Path) -> int:
    """Returns the free bytes of the disk that `path` is on, or will be."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
