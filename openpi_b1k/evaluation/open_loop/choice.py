"""Which demonstrations are looked at. Plain values, so that `--help` answers at once."""

import dataclasses
import pathlib
from typing import Literal

from openpi_b1k.config.data import Generation


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """Demonstrations to compare with; what is left out is as in the checkpoint's config."""

    root: pathlib.Path | None = None
    """Data set directory. Default: the run's; of a sample recipe its demonstrations, made anew if they are gone."""
    generation: Generation | None = None
    """Format of the data set at `root`; a checkpoint reads either."""
    tasks: tuple[str, ...] = ()
    """Only these of the run's tasks."""
    split: Literal["held-out", "training"] = "held-out"
    """Episodes that the run's split holds out, or those it trains on, which shows how much was learned by heart."""
