"""The subcommands of `scripts/evaluate.py`: each its arguments and the text it prints."""

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ClosedLoop:
    """Plays a checkpoint of a sample recipe on unseen layouts of the sample world."""

    checkpoint: pathlib.Path
    """A checkpoint directory, <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>."""
    episodes: int = 50
    seed: int = 0
    """Of layouts and sampling noise; every seed's layouts are unseen in training."""
    ablate: Literal["none", "prompt", "images", "weights", "demonstration"] = "none"
    """Control: another goal's prompt, black images, random weights, or the mean demonstration replayed."""
    execution_horizon: int | None = None
    """Actions executed per chunk; default: all that were predicted."""
    weights_kind: Literal["ema", "live"] = "ema"
    """The weights the checkpoint acts with, its moving average where it has one, or the live ones."""
    json: pathlib.Path | None = None
    """Where to write the result with every episode's outcome."""

    def run(self) -> str:
        """Returns the success rate as text.

        Raises:
            ValueError: an argument cannot be used with this checkpoint.
            FileNotFoundError: there is no such checkpoint.
        """
        from openpi_b1k.evaluation import closed_loop  # noqa: PLC0415  # so that --help answers at once

        result = closed_loop.evaluate(
            self.checkpoint,
            episodes=self.episodes,
            seed=self.seed,
            ablate=self.ablate,
            execution_horizon=self.execution_horizon,
            weights_kind=self.weights_kind,
        )
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(result.to_json())
        return result.summary()


Command = ClosedLoop
COMMANDS: dict[str, type[Command]] = {"closed-loop": ClosedLoop}
"""By the name a user types."""
