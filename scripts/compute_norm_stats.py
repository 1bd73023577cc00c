"""Prints the statistics that a recipe normalises with: `uv run scripts/compute_norm_stats.py RECIPE [flags]`.

Recipes and flags are those of train.py, which does the same on its first start. Reads parquet files, never a video.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is not in the package

import configs
from openpi_b1k.config import cli
from openpi_b1k.config.train import TrainConfig

USER_ERRORS = (ValueError, FileNotFoundError)


def run(config: TrainConfig) -> int:
    """Computes and prints the statistics, or reads those computed before, and returns the exit status."""
    # Imported here, so that --help and a refused flag answer at once.
    from openpi_b1k import metrics  # noqa: PLC0415
    from openpi_b1k.data import norm_stats  # noqa: PLC0415
    from openpi_b1k.data.open import open_demonstrations  # noqa: PLC0415
    from openpi_b1k.robots.r1pro import r1pro  # noqa: PLC0415
    from openpi_b1k.sample import demos  # noqa: PLC0415

    metrics.setup_logging(is_main=True)
    try:
        if config.data.source == "random":
            raise ValueError("random data have fixed statistics; choose a recipe with demonstrations, such as pi05_b1k")
        if config.data.source == "sample":
            config = demos.ensure(config)
        transforms = config.data.transforms
        robot = r1pro(transforms.state_layout)
        data = open_demonstrations(config, robot)
        horizon = config.model.action_horizon
        stats, path = norm_stats.load_or_compute(data.index, data.columns, transforms, robot, horizon)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(norm_stats.table(stats, robot, transforms.normalization))
    print(f"* nearly constant: not divided by its spread\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(run(cli.parse(configs)))
