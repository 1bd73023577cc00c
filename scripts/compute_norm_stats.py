"""Prints the statistics that a recipe normalises with: `uv run scripts/compute_norm_stats.py RECIPE [flags]`.

Recipes and flags are those of train.py, which does the same on its first start. Reads parquet files, never a video.
`--shard I/N` computes one part of each source's; when all N are there, `--merge` puts them together.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is not in the package

import configs
from openpi_b1k.config import cli
from openpi_b1k.config.train import TrainConfig


def run(config: TrainConfig, shard: str | None, *, is_merging: bool) -> int:
    """Prints the statistics of each source and of the mixture they make, and returns the exit status."""
    # Imported here, so that --help and a refused flag answer at once.
    from openpi_b1k import metrics  # noqa: PLC0415
    from openpi_b1k.data import norm_stats, sources  # noqa: PLC0415
    from openpi_b1k.robots.r1pro import r1pro  # noqa: PLC0415
    from openpi_b1k.sample import demos  # noqa: PLC0415

    metrics.setup_logging(is_main=True)
    try:
        if config.data.source == "random":
            raise ValueError("random data have fixed statistics; choose a recipe with demonstrations, such as pi05_b1k")
        config = demos.ensure(config) if config.data.source == "sample" else config
        opened = []
        for source in config.data.sources:
            robot = r1pro(source.transforms.state_layout)
            data = sources.open_demonstrations(source, robot)
            opened.append(norm_stats.StatsSource(data.index, data.columns, source.transforms, robot, source.weight))
        is_pooled = config.data.norm_stats_of == "pooled"
        for text in norm_stats.reports(opened, config.model.action_horizon, shard, is_merging, is_pooled):
            print(text)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    usage = "%(prog)s RECIPE [--shard I/N | --merge] [the recipe's flags]"
    parser = argparse.ArgumentParser(usage=usage, add_help=False, allow_abbrev=False)
    parser.add_argument("--shard", metavar="I/N", help="compute and keep only part I of N, counted from 0")
    parser.add_argument("--merge", action="store_true", help="put together the parts that --shard has kept")
    own, rest = parser.parse_known_args()
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), flush=True)
    sys.exit(run(cli.parse(configs, rest), own.shard, is_merging=own.merge))
