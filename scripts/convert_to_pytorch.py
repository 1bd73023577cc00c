"""Converts a checkpoint to PyTorch: `uv run scripts/convert_to_pytorch.py --checkpoint DIR --output DIR`.

The result is kept only if the JAX model and the PyTorch model compute the same, stage by stage; see docs/conversion.md.
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
    parser.add_argument("--checkpoint", required=True, help="a directory, or a gs://, hf:// or https:// address")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--weights-kind", choices=("ema", "live"), default="ema", help="default: %(default)s")
    parser.add_argument("--layout", choices=("openpi", "lerobot"), default="openpi", help="default: %(default)s")
    given, recipe = arguments.parse(parser, configs)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a GPU in use elsewhere stays untouched
    metrics.setup_logging(is_main=True)
    try:
        # Imported here, so that --help and a refused flag answer at once.
        from openpi_b1k.conversion import gate, to_pytorch  # noqa: PLC0415
    except ModuleNotFoundError as error:
        print(f"error: {error}; conversions need PyTorch: `uv sync --extra torch`", file=sys.stderr)
        return 2
    try:
        rows = to_pytorch.convert(
            given.checkpoint,
            given.output,
            recipe=recipe,
            dtype=given.dtype,
            weights_kind=given.weights_kind,
            layout=given.layout,
            norm_stats=given.norm_stats,
        )
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
