"""Converts a PyTorch model to a checkpoint: `uv run scripts/convert_from_pytorch.py --input DIR --output DIR`.

Reads model.safetensors of openpi, RLinf, LeRobot's pi05 or scripts/convert_to_pytorch.py; see docs/conversion.md.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is no part of the package

import configs
from openpi_b1k import metrics
from openpi_b1k.conversion import arguments


def main() -> int:
    """Returns the exit status: 0 if the conversion is done, 1 if the models differ, 2 if it is refused."""
    parser = arguments.parser(__doc__, configs)
    parser.add_argument("--input", required=True, help="a directory with model.safetensors, that file, or an address")
    given, recipe = arguments.parse(parser, configs)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a GPU in use elsewhere stays untouched
    metrics.setup_logging(is_main=True)
    try:
        # Imported here, so that --help and a refused flag answer at once.
        from openpi_b1k.conversion import from_pytorch, gate  # noqa: PLC0415
    except ModuleNotFoundError as error:
        print(f"error: {error}; conversions need PyTorch: `uv sync --extra torch`", file=sys.stderr)
        return 2
    try:
        rows = from_pytorch.convert(given.input, given.output, recipe=recipe, norm_stats=given.norm_stats)
    except gate.GateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(gate.table(rows))
    print(f"converted: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
