"""Batches as NumPy arrays, row by row: what worker processes make. Must not need jax."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.batch_memory import Layout, OwnBlocks, Path
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.lanes import LANES
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.transforms.base import Sample

FIELDS = ("images", "image_masks", "state", "prompt_tokens", "prompt_mask", "actions", "action_mask", "source")
"""Of a model sample, those a batch has."""
OPTIONAL_FIELDS = ("point_cloud",)
"""Those a batch has if the samples do."""
MAX_REPLACED = 256
"""Bad samples in a row of one lane after which a run that skips them ends all the same."""


class Share(NamedTuple):
    """What is said of a worker's rows of a step, which are in the batch's memory."""

    layout: Layout | None
    """Of the batch; None if there are no rows."""
    skipped: int = 0
    """How many samples were replaced."""
    messages: tuple[str, ...] = ()
    """What was wrong with these, and with replacements that were bad, too."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """The shares of batches: worker i of w makes those of this process's rows that `rows.share(step, i)` tells.

    With on_bad_sample skip, a sample that cannot be read is replaced by the next good one of its lane. That depends on
    the position alone, so a resumed run, or one with other workers, replaces it by the same.
    """

    mixture: Mixture
    rows: Rows
    is_skipping: bool
    """Whether bad samples are replaced."""

    def fill(self, step: int, worker: int, room: Callable[[Layout], Mapping[Path, np.ndarray]]) -> Share:
        """Writes a worker's rows of a step, each as soon as it is made.

        Args:
            step: of the run.
            worker: of this process, counted from 0.
            room: gives the arrays of the batch, [rows of this process, ...] each.

        Raises:
            BadSampleError: a sample cannot be read and is not skipped, or one and MAX_REPLACED after it cannot.
            ValueError: samples have different fields, shapes or types.
        """
        rows, positions = self.rows.share(step, worker)
        messages: list[str] = []
        skipped, layout, fields = 0, None, {}
        for row, n in zip(rows.tolist(), positions.tolist(), strict=True):
            before = len(messages)
            arrays = flatten(self._sample(n, messages))
            skipped += len(messages) > before
            if layout is None:
                layout = Layout.of(arrays, self.rows.stop - self.rows.first)
                fields = room(layout)
            _write(fields, row, arrays)
        return Share(layout, skipped, tuple(messages))

    def batch(self, step: int, blocks: OwnBlocks) -> tuple[dict[str, Any], list[Share]]:
        """Returns this process's rows of a step, made here in a block: fields [b, ...], images and masks by camera.

        Raises:
            BadSampleError: as `fill`.
            ValueError: as `fill`.
        """
        made: list[Mapping[Path, np.ndarray]] = []

        def room(layout: Layout) -> Mapping[Path, np.ndarray]:
            if not made:
                made.append(layout.views(blocks.block(layout.nbytes)))
            return made[0]

        shares = [self.fill(step, worker, room) for worker in range(self.rows.num_workers)]
        return nest(made[0]), shares

    def _sample(self, n: int, messages: list[str]) -> Sample:
        if not self.is_skipping:
            return self.mixture.sample(n)
        for k in range(MAX_REPLACED + 1):
            try:
                return self.mixture.sample(n + k * LANES)
            except BadSampleError as error:
                messages.append(str(error))
        raise BadSampleError(
            f"{MAX_REPLACED + 1} samples in a row could not be read, so skipping does not help; run "
            f"scripts/audit_dataset.py on the data. The last one: {messages[-1]}"
        )


def flatten(sample: Sample) -> dict[Path, np.ndarray]:
    """Returns those arrays of a model sample that a batch has, by path."""
    arrays = {}
    for name in (*FIELDS, *(name for name in OPTIONAL_FIELDS if name in sample)):
        value = sample[name]
        if isinstance(value, dict):
            arrays |= {(name, key): array for key, array in value.items()}
        else:
            arrays[name,] = value
    return arrays


def nest(arrays: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of a batch, images and their masks by camera, from arrays by path."""
    fields: dict[str, Any] = {}
    for (name, *keys), array in arrays.items():
        if keys:
            fields.setdefault(name, {})[keys[0]] = array
        else:
            fields[name] = array
    return fields


def _write(fields: Mapping[Path, np.ndarray], row: int, arrays: Mapping[Path, np.ndarray]) -> None:
    if fields.keys() != arrays.keys():
        raise ValueError(f"samples of a batch must have the same fields; got {list(arrays)} and {list(fields)}")
    for path, array in arrays.items():
        field = fields[path]
        if array.shape != field.shape[1:] or array.dtype != field.dtype:
            raise ValueError(
                f"samples of a batch must have the same shapes and types; {'.'.join(path)} is {array.dtype} "
                f"{list(array.shape)} in one and {field.dtype} {list(field.shape[1:])} in another"
            )
        field[row] = array
