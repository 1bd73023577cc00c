"""The sources of a run and the one order that draws from them: sample n is a pure function of (seed, n)."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from openpi_b1k.data.order.interleave import PERIOD, Interleave
from openpi_b1k.data.order.lanes import LANES, LaneOrder
from openpi_b1k.transforms.base import Sample, Transform

logger = logging.getLogger(__name__)


class Dataset(Protocol):
    """Raw samples by number."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        ...

    def __getitem__(self, i: int, /) -> Sample:
        """Returns the raw sample `i`."""
        ...

    def get(self, i: int, /, run: np.ndarray | None = None) -> Sample:
        """Returns the same; `run`, ascending samples of one episode, is what will be asked for at about this time."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One data set of a run."""

    name: str
    weight: float
    """Share of the samples that it gives, relative to the others."""
    dataset: Dataset
    pipeline: Transform
    """Raw sample -> model sample."""
    order: LaneOrder


class Address(NamedTuple):
    """Where a sample is."""

    source: int
    index: int
    """Of its data set."""
    run: np.ndarray | None
    """In mode spans: the ascending samples, this one's too, that are best decoded together; int64."""


class Mixture:
    """All sources of a run as one endless sequence of samples. Picklable; remembers only what speeds it up."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Fixes which source each position draws from.

        Raises:
            ValueError: a source is too rare to be drawn.
        """
        self.sources = tuple(sources)
        self._interleave = Interleave([source.weight for source in sources])

    @property
    def shares(self) -> np.ndarray:
        """The part of the samples that each source gives, float64 [sources]."""
        return self._interleave.counts / PERIOD

    def address(self, n: int) -> Address:
        """Returns where the sample at position `n` is; tens of microseconds where each lane goes on in order.

        Raises:
            ValueError: n is negative.
        """
        m, lane = divmod(n, LANES)
        source, drawn = self._interleave.draw(lane, m)
        pick = self.sources[source].order.pick(drawn * LANES + lane)
        return Address(source, pick.index, pick.run)

    def sample(self, n: int) -> Sample:
        """Returns the model sample at position `n`, decoded with what its run needs, and its `source`, an int32.

        Raises:
            BadSampleError: it cannot be read.
            ValueError: n is negative.
        """
        number, index, run = self.address(n)
        source = self.sources[number]
        return source.pipeline(source.dataset.get(index, run)) | {"source": np.asarray(number, np.int32)}

    def log(self) -> None:
        """Logs a line per source: its samples, weight, share, and after how many samples of the run it repeats."""
        for source, share in zip(self.sources, self.shares.tolist(), strict=True):
            kept, size = source.order.num_samples, len(source.dataset)
            logger.info(
                "source %s: %d samples%s, weight %g, share %.2f %%, an epoch every %d samples of the run",
                source.name,
                kept,
                f" kept of {size} by skill weights" if kept != size else "",
                source.weight,
                100 * share,
                round(kept / share),
            )
