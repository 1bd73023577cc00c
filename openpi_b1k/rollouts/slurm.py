"""A Slurm array script out of command lines."""

import pathlib
import shlex
from collections.abc import Sequence


def write_script(path: pathlib.Path, commands: Sequence[str], *, logs: pathlib.Path, at_once: int) -> None:
    """Writes a script whose n-th job runs the n-th command, whole or not at all.

    Args:
        path: of the script.
        commands: lines for a shell.
        logs: directory of what the jobs print; made here, since Slurm does not make it.
        at_once: how many jobs may run at the same time.

    Raises:
        ValueError: there is no command, `at_once` is below 1, or Slurm could not read the name of `logs`.
    """
    text = script(commands, logs=logs, at_once=at_once)
    logs.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(0o755)
    unfinished.replace(path)


def script(commands: Sequence[str], *, logs: pathlib.Path, at_once: int) -> str:
    """Returns the text of the script; arguments and errors as of `write_script`."""
    if not commands:
        raise ValueError("all rollouts are finished: there is nothing to run")
    if at_once < 1:
        raise ValueError(f"at least one job runs at a time, got {at_once}")
    if not str(logs).isprintable() or set(str(logs)) & set("%\\'\""):
        raise ValueError(f"{str(logs)!r} has a sign that Slurm reads as its own; choose another output directory")
    cases = "\n".join(f"{number}) exec {command} ;;" for number, command in enumerate(commands))
    return f"""#!/bin/bash
# One call of the evaluator per job. The policy servers must be running, and the simulator's environment be active where
# sbatch is called. Change the numbers below to what a simulator needs.
#SBATCH --job-name=b1k-eval
#SBATCH --array=0-{len(commands) - 1}%{at_once}
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output={shlex.quote(f"{logs}/%A_%a.log")}
set -euo pipefail
case "$SLURM_ARRAY_TASK_ID" in
{cases}
*) echo "no command $SLURM_ARRAY_TASK_ID; there are {len(commands)}" >&2; exit 2 ;;
esac
"""
