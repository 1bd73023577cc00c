"""Tells how much memory a recipe takes: `uv run scripts/plan.py RECIPE --device h100 --num-devices 8 [flags]`.

No accelerator is needed. Besides the recipe's flags, which `scripts/train.py RECIPE --help` lists, there are these:
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is no part of the package

import configs
from openpi_b1k.config import cli


def main() -> int:
    """Returns the exit status: 0 if the run fits as it is or as the plan decides, 1 if not, 2 for a refused flag."""
    parser = argparse.ArgumentParser(
        usage="scripts/plan.py RECIPE [--device NAME] [--num-devices N] [--devices-per-host N] [flags of the recipe]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"recipes: {', '.join(cli.load_recipes(configs))}",
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="h100", help="name, such as h100 or rtx-4090 (default: %(default)s)")
    parser.add_argument("--num-devices", type=int, default=1, help="over all hosts (default: %(default)s)")
    parser.add_argument("--devices-per-host", type=int, default=8, help="(default: %(default)s)")
    own, rest = parser.parse_known_args()
    if not rest:
        parser.print_help()
        return 2
    config = cli.parse(configs, rest)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed, so a GPU in use elsewhere stays untouched
    # Imported here, so that --help and a refused flag answer at once.
    from openpi_b1k.training import devices, plan_table  # noqa: PLC0415

    try:
        device = devices.named(own.device)
        text, is_fitting = plan_table.report(config, device, own.num_devices, own.devices_per_host)
    except (KeyError, ValueError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    print(text)
    return 0 if is_fitting else 1


if __name__ == "__main__":
    sys.exit(main())
