"""Evaluates policies: `uv run scripts/evaluate.py COMMAND --help`; docs/evaluation.md tells which command for what."""

import sys

import tyro

from openpi_b1k.evaluation.commands import COMMANDS, Command


def run(command: Command) -> int:
    """Prints what came out and returns the exit status."""
    try:
        print(command.run())
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.extras.subcommand_cli_from_dict(COMMANDS)))
