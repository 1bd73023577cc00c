"""Shares of batches as NumPy arrays: what worker processes make. Must not need jax."""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.lanes import LANES
from openpi_b1k.data.order.rows import Rows
from openpi_b1k.transforms.base import Sample

FIELDS = ("images", "image_masks", "state", "prompt_tokens", "prompt_mask", "actions", "action_mask")
"""Of a model sample, those a batch has."""
OPTIONAL_FIELDS = ("point_cloud",)
"""Those a batch has if the samples do."""
ENDLESS = 2**48
"""More shares than any run takes; grain wants a number."""
MAX_REPLACED = 256
"""Bad samples in a row of one lane after which a run that skips them ends all the same."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """`shares[step * w + i]` is what worker i of w makes of this process's rows of a step.

    With on_bad_sample skip, a sample that cannot be read is replaced by the next good one of its lane. That depends on
    the position alone, so a resumed run, or one with other workers, replaces it by the same.
    """

    mixture: Mixture
    rows: Rows
    is_skipping: bool
    """Whether bad samples are replaced."""

    def __len__(self) -> int:
        """Returns a number of shares that is never reached."""
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a share, which is a plain dict so that grain finds the arrays in it.

        Its fields: `fields`, those of the batch, stacked on a new first axis, in the order of `rows.share`, and empty
        if the share is; `skipped`, how many samples were replaced; `messages`, a tuple of what was wrong with these and
        with replacements that were bad, too.

        Raises:
            BadSampleError: a sample cannot be read and is not skipped, or one and MAX_REPLACED after it cannot.
        """
        step, worker = divmod(index, self.rows.num_workers)
        _, positions = self.rows.share(step, worker)
        messages: list[str] = []
        samples, skipped = [], 0
        for n in positions.tolist():
            before = len(messages)
            samples.append(self._sample(n, messages))
            skipped += len(messages) > before
        return {"fields": stack(samples) if samples else {}, "skipped": skipped, "messages": tuple(messages)}

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


def ignore_interrupts(worker: int, num_workers: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to every process of the run, to the process that trains and saves."""
    del worker, num_workers  # what grain tells a worker that starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns model samples as one batch: each field stacked, images and their masks by camera."""
    batch = {}
    for name in (*FIELDS, *(name for name in OPTIONAL_FIELDS if name in samples[0])):
        if isinstance(samples[0][name], dict):
            batch[name] = {key: np.stack([sample[name][key] for sample in samples]) for key in samples[0][name]}
        else:
            batch[name] = np.stack([sample[name] for sample in samples])
    return batch


def join(shares: Sequence[dict[str, Any]], rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the batch of a process from its workers' shares.

    Args:
        shares: `fields` of each worker's share; those without rows are empty.
        rows: of each, the rows of the batch that it holds; together each of them once.
    """
    if len(shares) == 1:
        return shares[0]
    size = sum(map(len, rows))
    filled = [(share, own) for share, own in zip(shares, rows, strict=True) if len(own)]

    def joined(parts: list[Any]) -> Any:  # Any: arrays, or dicts of them
        if isinstance(parts[0], dict):
            return {key: joined([part[key] for part in parts]) for key in parts[0]}
        whole = np.empty((size, *parts[0].shape[1:]), parts[0].dtype)
        for part, (_, own) in zip(parts, filled, strict=True):
            whole[own] = part
        return whole

    return joined([share for share, _ in filled])
