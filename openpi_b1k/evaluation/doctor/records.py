"""What a checkpoint's own files say about each other and about the data, without running the network."""

import pathlib

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.evaluation.doctor.findings import Finding
from openpi_b1k.robots.r1pro import r1pro

SHOWN = 3
"""Prompts that are quoted."""


def check(checkpoint: pathlib.Path) -> list[Finding]:
    """Returns the files of a checkpoint that are not those it was written with.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of this version.
    """
    config, info = contents.read_config(checkpoint), contents.read_info(checkpoint)
    found = []
    stats = next(iter(sorted(checkpoint.glob(contents.NORM_STATS_PATTERN))), None)
    if stats is not None and info.norm_stats_hash not in ("", contents.text_hash(stats.read_text())):
        found.append(Finding("statistics", (_changed(stats, stats.read_text(), info.norm_stats_hash),)))
    prompts = checkpoint / contents.PROMPTS_FILE
    if info.prompts_hash not in ("", contents.text_hash(prompts.read_text())):
        found.append(Finding("prompts", (_changed(prompts, prompts.read_text(), info.prompts_hash),)))
    robot = r1pro(config.data.transforms.state_layout)
    if info.state_layout not in ((), contents.describe_layout(robot.state)):
        was = ", ".join(line.split()[0] for line in info.state_layout)
        line = f"the config orders the state {', '.join(robot.state.names)}; when it was written it was {was}"
        found.append(Finding("state_layout", (line,)))
    if info.action_layout not in ((), contents.describe_layout(robot.action)):
        was = ", ".join(line.split()[0] for line in info.action_layout)
        line = f"actions are {', '.join(robot.action.names)} now; when the checkpoint was written they were {was}"
        found.append(Finding("records", (line,)))
    return found


def chunk_length(checkpoint: pathlib.Path) -> Finding | None:
    """Returns the finding that the statistics are of chunks of another length; such a policy cannot be run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of this version.
    """
    horizon = contents.read_config(checkpoint).model.action_horizon
    mean = contents.read_assets(checkpoint).norm_stats.actions.mean
    if mean.ndim == 1 or len(mean) == horizon:
        return None
    return Finding("horizon", (f"norm stats are of {len(mean)} steps of a chunk; model.action_horizon is {horizon}",))


def prompts(config: TrainConfig, served: dict[str, str], recorded: dict[str, set[str]]) -> list[str]:
    """Returns what differs between the prompts that serving uses and those of the data, a sentence each.

    Args:
        config: of the run; at a finer prompt level the table is not what training told the policy.
        served: the checkpoint's table, by task.
        recorded: the sentences of the data, by task.
    """
    if config.data.prompt_level:
        return []
    lines = [
        f"{task} is told {served[task]!r}, and in the data {sorted(texts)[0]!r}"
        if task in served
        else f"the checkpoint has no prompt for {task}"
        for task, texts in recorded.items()
        if served.get(task) not in texts
    ]
    more = [f"and {len(lines) - SHOWN} more tasks"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def notes(checkpoint: pathlib.Path) -> list[str]:
    """Returns what the statistics alone tell: entries that never moved in training.

    Raises:
        FileNotFoundError: a file is missing.
    """
    stats = contents.read_assets(checkpoint).norm_stats
    still = int(np.sum(np.atleast_2d(stats.actions.std).max(axis=0) == 0))
    return [f"{still} entries of the action never moved in training, so they always keep their value"] if still else []


def _changed(path: pathlib.Path, text: str, recorded: str) -> str:
    return f"{path.name} has hash {contents.text_hash(text)}; when the checkpoint was written it was {recorded}"
