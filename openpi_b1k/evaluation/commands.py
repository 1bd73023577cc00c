"""The subcommands of `scripts/evaluate.py`: each its arguments and the text it prints."""

from openpi_b1k.evaluation.closed_loop_command import ClosedLoop
from openpi_b1k.evaluation.open_loop_command import OpenLoop
from openpi_b1k.evaluation.rollout_commands import Collect, Commands

Command = ClosedLoop | OpenLoop | Commands | Collect
COMMANDS: dict[str, type[Command]] = {
    "closed-loop": ClosedLoop,
    "open-loop": OpenLoop,
    "commands": Commands,
    "collect": Collect,
}
"""By the name a user types."""
