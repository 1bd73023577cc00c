"""What a result is compared with: another one's rollouts, or another checkpoint, which then is played likewise."""

import dataclasses
import pathlib

from openpi_b1k.checkpoints import contents
from openpi_b1k.evaluation.closed_loop.outcome import Rivals
from openpi_b1k.evaluation.closed_loop.sample_world import play_checkpoint
from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.rollouts import results


def rivals(against: pathlib.Path, settings: Settings) -> Rivals:
    """Returns the rollouts in an output directory, or those of a checkpoint on the same instances.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: a result in it is broken, or the checkpoint cannot be played.
    """
    if (against / contents.CONFIG_FILE).is_file():
        played = play_checkpoint(
            against, dataclasses.replace(settings, output_dir=None, write_video=False, record=False)
        )
        return Rivals(str(against), played.rollouts)
    if not any((against / name).is_dir() for name in results.FOLDERS.values()):
        raise FileNotFoundError(
            f"{against} is neither a checkpoint (no {contents.CONFIG_FILE}) nor an --output-dir with results "
            f"(no {' or '.join(results.FOLDERS.values())}/)"
        )
    rollouts = tuple(results.read_all(against))
    if not rollouts:
        raise FileNotFoundError(f"no results in {against}")
    return Rivals(str(against), rollouts)
