"""Serves a checkpoint to BEHAVIOR-1K's evaluators and to openpi's clients, see docs/serving.md.

uv run scripts/serve_b1k.py --checkpoint DIR [--num-envs 16] [--execution.execution-horizon 16]
"""

import asyncio
import functools
import logging
import pathlib
import sys

import tyro

from openpi_b1k import metrics
from openpi_b1k.serving import assembly
from openpi_b1k.serving.options import Options
from openpi_b1k.serving.policy import Policy


def load(directory: pathlib.Path, options: Options) -> Policy:
    """Returns the policy of a checkpoint, or with PyTorch that of a converted directory."""
    # Imported here, so that --help answers at once and neither backend needs the other.
    if (directory / "model.safetensors").is_file():
        from openpi_b1k.pytorch import policy  # noqa: PLC0415

        return policy.load(directory, seed=options.seed)
    from openpi_b1k import compilation  # noqa: PLC0415
    from openpi_b1k.serving import jax_backend  # noqa: PLC0415

    compilation.keep_programs()
    return jax_backend.load(directory, options.seed, options.weights_kind)


async def serve(options: Options) -> None:
    """Serves until interrupted."""
    setup = options.setup(functools.partial(load, options=options))
    async with assembly.serving(setup, options.host, options.port) as port:
        logging.info("ready at %s:%d", options.host, port)
        await asyncio.get_running_loop().create_future()


def run(options: Options) -> int:
    """Serves and returns the exit status."""
    try:
        asyncio.run(serve(options))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    metrics.setup_logging(is_main=True)
    sys.exit(run(tyro.cli(Options)))
