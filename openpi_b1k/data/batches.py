"""Batches as NumPy arrays, by step: what worker processes make. Must not need jax."""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from openpi_b1k.data.order import sample_index
from openpi_b1k.transforms.base import Sample, Transform

FIELDS = ("images", "image_masks", "state", "prompt_tokens", "prompt_mask", "actions", "action_mask")
"""Of a model sample, those a batch has."""
ENDLESS = 2**48
"""More batches than any run takes; grain wants a number."""


class Dataset(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        ...

    def __getitem__(self, i: int, /) -> Sample:
        """Returns the raw sample `i`."""
        ...


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """`source[step]` is this process's share of the batch of a step, whichever process or thread asks."""

    dataset: Dataset
    pipeline: Transform
    seed: int
    batch_size: int
    """Over all processes: step k takes positions k*batch_size ... (k+1)*batch_size - 1 of the order."""
    first: int
    """First row of this process's share."""
    stop: int
    """End of it."""

    def __len__(self) -> int:
        """Returns a number of batches that is never reached."""
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the fields of the batch of step `index`, stacked on a new first axis."""
        positions = index * self.batch_size + np.arange(self.first, self.stop)
        return stack([self._sample(i) for i in sample_index(self.seed, positions, len(self.dataset)).tolist()])

    def _sample(self, i: int) -> Sample:
        return self.pipeline(self.dataset[i])


def ignore_interrupts(worker: int, num_workers: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to every process of the run, to the process that trains and saves."""
    del worker, num_workers  # what grain tells a worker that starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns model samples as one batch: each field stacked, images and their masks by camera."""
    batch = {}
    for name in FIELDS:
        if isinstance(samples[0][name], dict):
            batch[name] = {key: np.stack([sample[name][key] for sample in samples]) for key in samples[0][name]}
        else:
            batch[name] = np.stack([sample[name] for sample in samples])
    return batch
