"""What the closed loop can be asked for. Loads nothing heavy."""

import dataclasses
import pathlib
from typing import Literal

from openpi_b1k.config.data import Generation

Ablation = Literal["none", "prompt", "images", "weights", "demonstration"]
MAX_EPISODES = 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which episodes are played, how the policy is asked, and what is written."""

    episodes: int = 50
    seed: int = 0
    """Of layouts and sampling noise; every seed's layouts are unseen in training."""
    ablate: Ablation = "none"
    """Control: another goal's prompt, black images (and depth), random weights, or the mean demonstration replayed."""
    execution_horizon: int | None = None
    """Actions executed per chunk; default: all that were predicted."""
    weights_kind: Literal["ema", "live"] = "ema"
    """The weights the checkpoint acts with, its moving average where it has one, or the live ones."""
    generation: Generation | None = None
    """Of the proprio sent; default: that of the checkpoint's data, 2026 for a running server."""
    protocol: Literal["2025", "2026"] = "2026"
    """Of the messages. 2025: one environment after the other, unbatched; 2026: `num_envs` at a time, stacked."""
    num_envs: int = 50
    """Environments played at a time, on one connection, or one for each of --policy-endpoints."""
    replay_action_chunk_size: int | None = None
    """Execute so many actions of each reply without asking again, at least 2; where the execution horizon is a multiple
    of it, the outcome is the same, sooner."""
    output_dir: pathlib.Path | None = None
    """Where to write each rollout's result as the evaluator does: json/<task>_<instance>_<rollout>.json."""
    write_video: bool = False
    """Write videos/<the same>.mp4, too: all cameras of each step."""
    record: bool = False
    """Write recordings/<the same>/, too: all that was seen and done, for scripts/import_rollouts.py."""

    def __post_init__(self) -> None:
        """Refuses what cannot be played.

        Raises:
            ValueError: a number is out of its range, or files are wanted and there is no directory for them.
        """
        if not 1 <= self.episodes <= MAX_EPISODES or self.num_envs < 1:
            raise ValueError(
                f"episodes must be in [1, {MAX_EPISODES}] and num_envs at least 1; got {self.episodes} and "
                f"{self.num_envs}"
            )
        if self.seed < 0:
            raise ValueError(
                f"seed must not be negative, or layouts of the demonstrations could come up; got {self.seed}"
            )
        if self.replay_action_chunk_size is not None and self.replay_action_chunk_size < 2:
            raise ValueError(
                f"replay_action_chunk_size must be at least 2, or left out to ask every time; got "
                f"{self.replay_action_chunk_size}"
            )
        if (self.write_video or self.record) and self.output_dir is None:
            raise ValueError("videos and recordings need a directory: give --output-dir DIR")

    def group_size(self, num_endpoints: int) -> int:
        """Returns how many environments are played at a time."""
        if num_endpoints > 1:
            return num_endpoints
        return 1 if self.protocol == "2025" else min(self.num_envs, self.episodes)
