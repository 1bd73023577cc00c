"""Trains a policy: `uv run scripts/train.py RECIPE [flags]`; `--help` lists recipes and flags."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is no part of the package

import configs
from openpi_b1k.config import cli
from openpi_b1k.config.train import TrainConfig

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ConnectionError, ImportError)


def run(config: TrainConfig) -> int:
    """Trains, plays the rollouts that the config asks for, and returns the exit status."""
    # Imported here, so that --help and a refused flag answer at once.
    import jax  # noqa: PLC0415

    from openpi_b1k.checkpoints.failures import CheckpointTimeoutError  # noqa: PLC0415
    from openpi_b1k.training.loop import RUN_ERRORS, train  # noqa: PLC0415
    from openpi_b1k.training.start import start  # noqa: PLC0415
    from openpi_b1k.training.stopping import InterruptedTraining  # noqa: PLC0415

    try:
        if config.data.source == "sample":
            from openpi_b1k.sample import demos  # noqa: PLC0415

            config = demos.ensure(config)
        training = start(config)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        checkpoint = train(training)
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, CheckpointTimeoutError):
            os._exit(1)  # threads that write may hang for ever
        return 1
    except InterruptedTraining as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    print(f"checkpoint: {checkpoint}")
    if config.rollouts and jax.process_index() == 0:
        from openpi_b1k.evaluation.closed_loop import sample_world  # noqa: PLC0415

        print(sample_world.evaluate(checkpoint, episodes=config.rollouts, seed=config.seed).summary())
    return 0


if __name__ == "__main__":
    config = cli.parse(configs)
    from openpi_b1k.training import distributed

    sys.exit(distributed.run(run, config))
