"""How well an order mixes: what share of a batch tells the model something that its other samples do not."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.mixture import Mixture


@dataclasses.dataclass(frozen=True)
class Mixedness:
    """Of batches, on average and in the worst one."""

    distinct_episodes: float
    """Mean number of different episodes in a batch."""
    fewest_episodes: int
    neighbour_correlation: float
    """Mean share of a batch's samples that have another of the same episode within a second: 1 for a clip."""


def mixedness(mixture: Mixture, index: EpisodeIndex, batch_size: int, steps: Sequence[int]) -> Mixedness:
    """Returns how mixed the batches of some steps are; nothing is read. The mixture has one source."""
    distinct, correlations = [], []
    for step in steps:
        positions = range(step * batch_size, (step + 1) * batch_size)
        places = np.array([index.locate(mixture.address(n).index) for n in positions])
        distinct.append(len(np.unique(places[:, 0])))
        correlations.append(neighbour_correlation(places[:, 0], places[:, 1], index.fps))
    return Mixedness(float(np.mean(distinct)), min(distinct), float(np.mean(correlations)))


def neighbour_correlation(rows: np.ndarray, frames: np.ndarray, distance: int) -> float:
    """Returns the share of samples that have another one of the same row at most `distance` frames away, in [0, 1]."""
    order = np.lexsort((frames, rows))
    is_near = (np.diff(rows[order]) == 0) & (np.diff(frames[order]) <= distance)
    return float((np.append(is_near, False) | np.append(False, is_near)).mean())
