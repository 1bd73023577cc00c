"""What Normalize sees of an episode, counted without making it: chunks of 32 actions would be 32 times the data.

State: every frame of the window counts once. Actions: every real step of every frame's chunk counts, after the delta
transform, and steps past the window's end do not. An absolute action is therefore counted once with the number of
chunks that hold it. Of deltas, whose value depends on the chunk, moments come from running sums, and quantiles from a
loop over the steps: at step k it counts actions[k:] - state[:-k], contiguous arrays both.
"""

import dataclasses
import functools

import numpy as np

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data.statistics.distribution import EXACT_VALUES, Distribution
from openpi_b1k.data.statistics.summary import Summary
from openpi_b1k.robots.layout import Layout, Robot
from openpi_b1k.transforms.b1k import extract_state

BLOCK_FRAMES = 16_384


@dataclasses.dataclass(frozen=True)
class Counting:
    """How episodes are counted."""

    robot: Robot
    transforms: TransformConfig
    action_horizon: int
    stride: int = 1
    """Quantiles of deltas count every n-th step of a chunk; which ones rotates from block to block."""

    def empty(self) -> Summary:
        """Returns the summary of no frames."""
        steps = self.action_horizon if self.transforms.per_step_norm else 1
        return Summary.empty(self.robot.state.size, self.robot.action.size, steps)

    @functools.cached_property
    def origins(self) -> dict[int, int]:
        """Action entry -> state entry that it is relative to."""
        robot = self.robot
        return {
            action: state
            for name in self.transforms.delta_fields
            for action, state in zip(_range(robot.action, name), _range(robot.state, name), strict=True)
        }

    def add(self, summary: Summary, proprio: np.ndarray, actions: np.ndarray, number: int) -> None:
        """Adds an episode's window, proprio float32 [n, p] and actions float32 [n, a]; `number` is the episode's."""
        for block, first in enumerate(range(0, len(actions), BLOCK_FRAMES)):
            stop = min(first + BLOCK_FRAMES, len(actions))
            state = np.ascontiguousarray(extract_state(self.robot, proprio[first:stop]).T)
            ahead = np.ascontiguousarray(actions[first : stop + self.action_horizon - 1].T)
            for entry, values in zip(summary.state, state, strict=True):
                entry.update(values)
            summary.frames += stop - first
            if self.transforms.per_step_norm:
                self._add_steps(summary, state, ahead)
            else:
                self._add_chunks(summary.actions[0], state, ahead, first, (number + block) % self.stride)

    def _add_steps(self, summary: Summary, state: np.ndarray, ahead: np.ndarray) -> None:
        """Adds a block's chunks, step by step: state [s, n], and the actions from its first frame on [a, m]."""
        for step, entries in enumerate(summary.actions):
            frames = min(state.shape[1], ahead.shape[1] - step)
            for i, entry in enumerate(entries):
                values = ahead[i, step : step + max(frames, 0)]
                entry.update(values - state[self.origins[i], : len(values)] if i in self.origins else values)

    def _add_chunks(
        self, entries: list[Distribution], state: np.ndarray, ahead: np.ndarray, first: int, start: int
    ) -> None:
        """Adds a block's chunks, their steps together; the block begins at frame `first` of the window."""
        frames, horizon = state.shape[1], self.action_horizon
        early = max(0, min(horizon - 1 - first, frames))  # frames held by fewer chunks than the horizon has steps
        for i, entry in enumerate(entries):
            if i in self.origins:
                self._add_deltas(entry, state[self.origins[i]], ahead[i], start)
            else:
                entry.update(ahead[i, :early], np.arange(first + 1, first + 1 + early))
                entry.update(ahead[i, early:frames], horizon)

    def _add_deltas(self, entry: Distribution, state: np.ndarray, ahead: np.ndarray, start: int) -> None:
        """Adds one entry's actions [m] relative to the state [n] at the first step of the chunk they are in."""
        horizon, frames = self.action_horizon, len(state)
        entry.add_moments(*delta_moments(state, ahead, horizon))
        steps = range(start if start < min(horizon, len(ahead)) else 0, min(horizon, len(ahead)), self.stride)
        if entry.exponent is None and len(entry.values) + frames * len(steps) <= EXACT_VALUES:
            pairs = [ahead[step : step + frames] - state[: len(ahead) - step] for step in steps]
            entry.add_values(np.concatenate(pairs))
            return
        low, high = delta_range(state, ahead, horizon)
        # Scaling by a power of two is exact, so it commutes with the difference and is done once.
        scale = np.float32(2.0 ** -entry.cover(low, high))
        state, ahead = state * scale, ahead * scale
        differences = np.empty(frames * len(steps), np.float32)
        used = 0
        for step in steps:
            size = min(frames, len(ahead) - step)
            np.subtract(ahead[step : step + size], state[:size], out=differences[used : used + size])
            used += size
        entry.add_bins(np.floor(differences[:used], out=differences[:used]).astype(np.int64))


def delta_moments(state: np.ndarray, ahead: np.ndarray, horizon: int) -> tuple[int, float, float]:
    """Returns count, mean and sum of squared deviations of ahead[t + k] - state[t] over all t and real steps k.

    Sums over k are differences of running sums; both are taken about the state's mean, so that little cancels.
    """
    middle = state.mean(dtype=np.float64)
    origin, values = state.astype(np.float64) - middle, ahead.astype(np.float64) - middle
    frames = np.arange(len(state))
    ends = np.minimum(frames + horizon, len(ahead))
    steps = (ends - frames).astype(np.float64)
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (values, values**2))
    sums, squares = sums[ends] - sums[frames], squares[ends] - squares[frames]
    count = int(steps.sum())
    mean = float((sums - steps * origin).sum()) / count
    origin += mean  # deviations from the mean: values - origin - mean
    return count, mean, max(float((squares - 2 * origin * sums + steps * origin**2).sum()), 0.0)


def delta_range(state: np.ndarray, ahead: np.ndarray, horizon: int) -> tuple[float, float]:
    """Returns the least and greatest ahead[t + k] - state[t] over all t and real steps k, as float32 gives them."""
    frames = len(state)
    least, greatest = ahead, ahead
    width = 1
    while width < horizon:  # extremes of windows, doubled until they are as wide as a chunk
        shift = min(width, horizon - width)
        least, greatest = _widened(least, shift, np.minimum), _widened(greatest, shift, np.maximum)
        width += shift
    return float((least[:frames] - state).min()), float((greatest[:frames] - state).max())


def _widened(values: np.ndarray, shift: int, extreme: np.ufunc) -> np.ndarray:
    wide = values.copy()
    extreme(wide[:-shift], values[shift:], out=wide[:-shift])
    return wide


def _range(layout: Layout, name: str) -> range:
    where = layout.slice(name)
    return range(where.start, where.stop)
