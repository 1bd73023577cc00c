"""Measures what data and serving cost, on generated data: `uv run scripts/benchmark.py loader|policy|...`.

The loader's data are made on first use, in the cache: about a minute for each kind. --json FILE keeps the rows.
"""

import logging
import sys

import tyro

from openpi_b1k.benchmarks import commands


def run(command: commands.Command) -> int:
    """Prints the rows and returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        rows = command.rows()
        if command.json:
            commands.write(command.json, rows)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(commands.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(commands.Command)))
