"""Which positions of the order a step's batch holds, in which rows, and which worker makes them."""

import dataclasses

import numpy as np

from openpi_b1k.data.order.lanes import LANES, REVERSED


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of every batch that one process makes, shared out to its workers.

    Step k's batch of size b holds positions k*b ... (k+1)*b - 1. Its rows are sorted by lane with reversed bits: any
    power of two of processes then has whole lanes, always the same ones, and yet the batch is the same for all numbers
    of processes. A lane's samples are all made by one worker, in order, so that it can keep their decoders open.
    """

    batch_size: int
    """Over all processes."""
    first: int
    """First row of this process."""
    stop: int
    """End of its rows."""
    num_workers: int
    """Of this process, at least 1."""

    def positions(self, step: int) -> np.ndarray:
        """Returns the position of each of the whole batch's rows, int64 [batch_size]."""
        n = step * self.batch_size + np.arange(self.batch_size)
        return n[np.argsort(_REVERSED[n % LANES], kind="stable")]

    def share(self, step: int, worker: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a worker's (rows of this process, counted from 0; positions), int64; there may be none."""
        n = self.positions(step)[self.first : self.stop]
        rows = np.flatnonzero(n % LANES // self._num_sharing % self.num_workers == worker)
        return rows, n[rows]

    @property
    def _num_sharing(self) -> int:
        """The largest power of two of processes that this process may be one of."""
        processes = self.batch_size // (self.stop - self.first)
        return min(2 ** (processes.bit_length() - 1), LANES)


_REVERSED = np.array(REVERSED)
