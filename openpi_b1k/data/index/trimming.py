"""The window of an episode that is worth learning from: without the idle frames at its ends.

A policy that learns to stand still at an episode's start may never begin. An annotation's valid_duration says where the
episode begins and ends; where there is none to believe, frames at either end without motion are left out.
"""

import dataclasses
import logging

import numpy as np

from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.annotations import Annotations
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.segments import NONE

logger = logging.getLogger(__name__)

STILL = 1e-3
"""Largest change of a command (rad, or controller units) that is no motion."""
BASE = "base"
"""The field of an action that is a velocity: it is still only at 0."""
BLOCK = 512
"""Frames looked at at once from an end."""


@dataclasses.dataclass(frozen=True)
class TrimReport:
    """What trimming did."""

    frames: int
    """Before."""
    trimmed: int
    """Frames left out."""
    by_annotation: int
    """Episodes that have the annotation's window."""
    by_motion: int
    """Episodes whose window was found by motion."""
    disbelieved: int
    """Of these: there is a valid_duration, but it is not believed."""
    motionless: int
    """Of these: nothing moves, so all is kept."""

    @property
    def text(self) -> str:
        """One line for a log."""
        disbelieved = f" ({self.disbelieved} with an unusable valid_duration)" if self.disbelieved else ""
        motionless = f"; {self.motionless} without any motion are kept whole" if self.motionless else ""
        return (
            f"{self.trimmed} of {self.frames} frames ({self.trimmed / max(1, self.frames):.1%}) are idle at episodes' "
            f"ends and left out; {self.by_annotation} episodes by valid_duration, {self.by_motion} by motion"
            f"{disbelieved}{motionless}"
        )


def trim(index: EpisodeIndex, annotations: Annotations, columns: Columns) -> tuple[EpisodeIndex, TrimReport]:
    """Returns the index with its windows narrowed to what is worth learning, and what that did. Logs it in one line.

    A valid_duration [start, end) is not believed where it is empty or ends past the episode, nor where it belongs to
    another episode: the annotation has another length than this one, and a skill outlasts the window (openpi-comet's
    rollouts come with a demonstration's annotation, its first skill stretched). A frame more or less is no difference.

    Args:
        index: of the data set.
        annotations: of the same index.
        columns: of the same index; read only where motion decides, and there only near an episode's ends.
    """
    begins, ends = annotations.windows[:, 0].copy(), annotations.windows[:, 1].copy()
    has_window = (begins != NONE) | (ends != NONE)
    is_own = (annotations.durations == NONE) | (np.abs(annotations.durations - index.lengths) <= 1)
    is_believed = (begins >= 0) & (begins < ends) & (ends <= index.lengths + 1)
    is_believed &= is_own | (annotations.last_ends <= ends)
    motionless = 0
    for row in np.flatnonzero(~is_believed).tolist():
        window = moving_window(columns.episode(row)[1], columns.robot.action.slice(BASE))
        motionless += window is None
        begins[row], ends[row] = window or (0, index.lengths[row])
    begins, ends = np.maximum(begins, index.begins), np.minimum(ends, index.ends)
    is_empty = begins >= ends  # beyond a window that was there before
    begins[is_empty], ends[is_empty] = index.begins[is_empty], index.ends[is_empty]
    trimmed = dataclasses.replace(index, begins=begins, ends=ends)
    report = TrimReport(
        frames=len(index),
        trimmed=len(index) - len(trimmed),
        by_annotation=int(is_believed.sum()),
        by_motion=int((~is_believed).sum()),
        disbelieved=int((has_window & ~is_believed).sum()),
        motionless=motionless,
    )
    logger.info("%s: %s", index.root, report.text)
    return trimmed, report


def moving_window(actions: np.ndarray, base: slice) -> tuple[int, int] | None:
    """Returns the frames [begin, end) between an episode's idle ends, or None if nothing moves.

    At the start the frames whose command is still the first one are idle; at the end those that repeat the last
    command, but not the frame that gives it first. A command that drives the base is never idle.

    Args:
        actions: float32 [n, ad].
        base: its velocities.
    """
    begin = _still(actions, base, actions[0])
    if begin == len(actions):
        return None
    end = len(actions) - max(0, _still(actions[::-1], base, actions[-1]) - 1)
    return begin, max(end, begin + 1)  # a command that creeps on is near both its first and its last value


def _still(actions: np.ndarray, base: slice, command: np.ndarray) -> int:
    """Returns how many frames from the first on have that command and do not drive the base."""
    for first in range(0, len(actions), BLOCK):
        block = actions[first : first + BLOCK]
        is_moving = (np.abs(block - command) > STILL).any(axis=1) | (np.abs(block[:, base]) > STILL).any(axis=1)
        if is_moving.any():
            return first + int(is_moving.argmax())
    return len(actions)
