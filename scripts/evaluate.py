"""Evaluates a checkpoint: `uv run scripts/evaluate.py closed-loop --checkpoint DIR` plays it in the sample world."""

import dataclasses
import pathlib
import sys
from typing import Literal

import tyro


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


def run(args: ClosedLoop) -> int:
    """Prints the success rate and returns the exit status."""
    from openpi_b1k.evaluation import closed_loop  # noqa: PLC0415  # so that --help answers at once

    try:
        result = closed_loop.evaluate(
            args.checkpoint,
            episodes=args.episodes,
            seed=args.seed,
            ablate=args.ablate,
            execution_horizon=args.execution_horizon,
            weights_kind=args.weights_kind,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(result.to_json())
    print(result.summary())
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.extras.subcommand_cli_from_dict({"closed-loop": ClosedLoop})))
