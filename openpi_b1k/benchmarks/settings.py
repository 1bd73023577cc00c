"""How the loader is measured, as the command line says it."""

import dataclasses

from openpi_b1k.config.data import DataConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a loader is measured."""

    num_workers: int = 2
    batch_size: int = 256
    turns: int = 5
    """Of the loader and of the ceiling, each, after one that is not counted."""
    steps_per_turn: int = 4
    first_step: int = 0
    """Where the run begins."""
    memory_samples: int = 10_000
    """Over which memory is watched, the turns' among them."""
    window_gb: float = DataConfig.window_gb

    def __post_init__(self) -> None:
        if min(self.num_workers, self.batch_size, self.turns, self.steps_per_turn) < 1:
            raise ValueError(f"num_workers, batch_size, turns and steps_per_turn must be at least 1; got {self}")
