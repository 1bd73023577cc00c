"""Samples a chunk at each chosen frame, and measures it and the baselines against what was demonstrated."""

import dataclasses
import pathlib

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import WeightsKind
from openpi_b1k.evaluation.open_loop.baselines import Baselines
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.looking import look
from openpi_b1k.evaluation.open_loop.replays import Replay, replay
from openpi_b1k.evaluation.open_loop.result import Result
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames, choose_frames
from openpi_b1k.evaluation.run_report_data import Chunk
from openpi_b1k.robots.chunk_errors import step_errors
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.policy import Policy

SHOWN_EPISODES = 4
"""Whose frames and chunks a page shows."""
SHOWN_FRAMES = 2
"""Of each of these."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What came out."""

    result: Result
    shown: tuple[Chunk, ...]
    """Chunks of a few episodes, in order."""
    replays: tuple[Replay, ...] = ()
    """The same episodes from end to end, where that was asked for."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How chunks are sampled."""

    seed: int = 0
    """Of the noise. With the same seed, batch size and frames, checkpoints get the same noise at each frame."""
    batch_size: int = 16
    """Frames at a time; the last batch is filled up, so that one size is compiled."""
    weights_kind: WeightsKind = "ema"
    is_replayed: bool = False
    """Whether a few episodes are gone through from end to end, which a page shows."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")


def evaluate(checkpoint: pathlib.Path, choice: DataChoice, count: int, sampling: Sampling) -> Measured:
    """Returns the errors of a checkpoint's chunks at about `count` frames of demonstrations.

    Args:
        checkpoint: the directory.
        choice: which demonstrations.
        count: of frames, spread evenly over episodes.
        sampling: how.

    Raises:
        FileNotFoundError: checkpoint or data are not there.
        ValueError: they do not fit together, a frame cannot be read, or the policy gives an action that is no number.
    """
    config, info = contents.read_config(checkpoint), contents.read_info(checkpoint)
    frames = choose_frames(config, info, choice, count)  # before the weights, which take long to load
    policy = jax_backend.load(checkpoint, sampling.seed, sampling.weights_kind)
    baselines = Baselines(
        policy.robot,
        contents.read_assets(checkpoint).norm_stats,
        config.data.transforms.delta_fields,
        config.model.action_horizon,
    )
    facts = {
        "checkpoint": str(checkpoint),
        "completed_steps": info.completed_steps,
        "weights": sampling.weights_kind,
        "data": str(frames.index.root),
        "data_fingerprint": frames.index.fingerprint,
        "split": choice.split,
        "seed": sampling.seed,
        "batch_size": sampling.batch_size,
    }
    measured = measure(policy, frames, baselines, facts, sampling.batch_size)
    if not sampling.is_replayed:
        return measured
    rows = _spread(np.unique(frames.rows), SHOWN_EPISODES)
    replays = tuple(replay(policy, frames, row, sampling.batch_size) for row in rows)
    return dataclasses.replace(measured, replays=replays)


def measure(
    policy: Policy, frames: ChosenFrames, baselines: Baselines, facts: dict[str, object], batch_size: int
) -> Measured:
    """Returns the errors of a policy's chunks and of the baselines' at the chosen frames.

    Args:
        policy: to look at.
        frames: of demonstrations.
        baselines: of the same robot and action horizon.
        facts: as `Result.facts`.
        batch_size: frames at a time.

    Raises:
        ValueError: a frame cannot be read, or the policy gives an action that is no number.
    """
    shown_places = set(_shown_places(frames.rows))
    errors, masks, shown = [], [], []
    for place, looked in enumerate(look(policy, frames, batch_size)):
        chunks = np.stack([looked.predicted, *baselines.chunks(looked.inputs["raw_state"], looked.last_action)])
        true = np.broadcast_to(looked.sample["actions"], chunks.shape)
        errors.append(step_errors(policy.robot.action, true, chunks))
        masks.append(~looked.sample["is_pad"])
        if place in shown_places:
            shown.append(looked.chunk())
    result = Result(
        errors=np.stack(errors, axis=1),
        step_mask=np.stack(masks),
        layout=policy.robot.action,
        episodes=frames.index.numbers[frames.rows],
        tasks=tuple(frames.tasks),
        skills=tuple(frames.skills),
        facts=facts,
        notes=frames.notes,
    )
    return Measured(result, tuple(shown))


def _shown_places(rows: np.ndarray) -> list[int]:
    """Returns which frames a page shows: some of some episodes, both spread evenly; `rows` are the frames' episodes."""
    found = []
    for row in _spread(np.unique(rows), SHOWN_EPISODES):
        found += _spread(np.flatnonzero(rows == row), SHOWN_FRAMES)
    return found


def _spread(values: np.ndarray, count: int) -> list[int]:
    return values[np.linspace(0, len(values) - 1, min(len(values), count)).astype(int)].tolist()
