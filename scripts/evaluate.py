"""Evaluates a checkpoint: `uv run scripts/evaluate.py closed-loop --checkpoint DIR` plays it in the sample world."""

import sys

import tyro

from openpi_b1k.evaluation.commands import COMMANDS, Command


def run(command: Command) -> int:
    """Prints what came out and returns the exit status."""
    try:
        print(command.run())
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.extras.subcommand_cli_from_dict(COMMANDS)))
