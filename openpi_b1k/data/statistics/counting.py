"""What Normalize sees of an episode, counted without making it: chunks of 32 actions would be 32 times the data.

State: every frame of the window counts once. Actions: every real step of every frame's chunk counts, after the delta
transform, and steps past the window's end do not. An absolute action is therefore counted once with the number of
chunks that hold it. Of deltas, whose value depends on the chunk, moments come from running sums, and quantiles from a
loop over the steps: at step k it counts actions[k:] - state[:-k], or every n-th of them.

Windows are counted in blocks: a short one shares its block with others, a long one fills several. NumPy's calls are
then long enough to cost little more than their work, and their arrays small enough for a core's cache.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data.statistics.distribution import Distribution
from openpi_b1k.data.statistics.summary import Summary
from openpi_b1k.robots.layout import Layout, Robot
from openpi_b1k.transforms.b1k import extract_state

BLOCK_FRAMES = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """What is counted of an episode."""

    proprio: np.ndarray
    """float32 [n, p]"""
    actions: np.ndarray
    """float32 [n, a]"""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a part of a window lies in a block."""

    begin: int
    end: int
    """Columns of its frames are [begin, end)."""
    stop: int
    """Columns [end, stop) are later actions that chunks of these frames reach; only a block's last piece has any."""
    first: int
    """Frame of the window in column `begin`."""

    def pairs(self, step: int, stride: int = 1) -> tuple[slice, slice]:
        """Returns the columns of frames and, as many, of their real actions so many steps ahead.

        With a stride, one pair in so many, the same ones whatever the blocks are. Which frames they are moves on by two
        from step to step, and which actions therefore by one: over an odd stride's steps all of both have their turn.
        """
        begin = self.begin + -(self.first + 2 * step) % stride
        end = min(self.end, self.stop - step)
        return slice(begin, max(begin, end), stride), slice(begin + step, max(begin, end) + step, stride)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Pieces of windows, one after the other. Axes: `n` frames, `m` frames and later actions."""

    state: np.ndarray
    """float32 [s, n]"""
    actions: np.ndarray
    """float32 [a, m]"""
    pieces: tuple[Piece, ...]

    @property
    def frames(self) -> int:
        """Frames of all pieces."""
        return self.state.shape[1]


@dataclasses.dataclass(frozen=True)
class Counting:
    """How windows are counted."""

    robot: Robot
    transforms: TransformConfig
    action_horizon: int
    stride: int = 1
    """Quantiles of deltas count every n-th frame at each step of the chunk."""

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

    def summarise(self, windows: Iterable[Window]) -> Summary:
        """Returns the summary of windows."""
        summary = self.empty()
        for block in self.blocks(windows):
            for entry, values in zip(summary.state, block.state, strict=True):
                entry.update(values)
            summary.frames += block.frames
            if self.transforms.per_step_norm:
                self._add_steps(summary.actions, block)
            else:
                self._add_chunks(summary.actions[0], block)
        return summary

    def blocks(self, windows: Iterable[Window]) -> Iterator[Block]:
        """Yields blocks that hold each window's frames once; all but the last have BLOCK_FRAMES of them."""
        held: list[tuple[Window, slice]] = []
        used = 0
        for window in windows:
            first = 0
            while first < len(window.actions):
                end = min(first + BLOCK_FRAMES - used, len(window.actions))
                held.append((window, slice(first, end)))
                used += end - first
                first = end
                if used == BLOCK_FRAMES:
                    yield self._block(held)
                    held, used = [], 0
        if held:
            yield self._block(held)

    def _block(self, parts: list[tuple[Window, slice]]) -> Block:
        pieces, actions = [], []
        begin = 0
        for window, part in parts:
            end = begin + part.stop - part.start
            is_last = len(pieces) == len(parts) - 1
            ahead = window.actions[part.start : part.stop + (self.action_horizon - 1 if is_last else 0)]
            pieces.append(Piece(begin, end, begin + len(ahead), part.start))
            actions.append(ahead)
            begin = end
        state = extract_state(self.robot, np.concatenate([window.proprio[part] for window, part in parts]))
        columns = np.ascontiguousarray(np.concatenate(actions).T)
        return Block(np.ascontiguousarray(state.T), columns, tuple(pieces))

    def _add_steps(self, steps: list[list[Distribution]], block: Block) -> None:
        """Adds a block's chunks, step by step."""
        for step, entries in enumerate(steps):
            pairs = [piece.pairs(step) for piece in block.pieces]
            values = np.concatenate([block.actions[:, ahead] for _, ahead in pairs], axis=1)
            if self.origins:
                origins = block.state[list(self.origins.values())]
                values[list(self.origins)] -= np.concatenate([origins[:, now] for now, _ in pairs], axis=1)
            for entry, added in zip(entries, values, strict=True):
                entry.update(added)

    def _add_chunks(self, entries: list[Distribution], block: Block) -> None:
        """Adds a block's chunks, their steps together."""
        # An action is held by as many chunks as began before it, at most the horizon.
        held = np.concatenate([np.arange(p.first, p.first + p.end - p.begin) for p in block.pieces]) + 1
        held = np.minimum(held, self.action_horizon).astype(np.float64)
        for i, entry in enumerate(entries):
            if i not in self.origins:
                entry.update(block.actions[i, : block.frames], held)
        if self.origins:
            self._add_deltas([entries[i] for i in self.origins], block)

    def _add_deltas(self, entries: list[Distribution], block: Block) -> None:
        """Adds a block's actions relative to the state at the first step of the chunk they are in."""
        horizon = self.action_horizon
        state, actions = block.state[list(self.origins.values())], block.actions[list(self.origins)]
        ends = np.concatenate([np.minimum(np.arange(p.begin, p.end) + horizon, p.stop) for p in block.pieces])
        for entry, moments in zip(entries, delta_moments(state, actions, ends), strict=True):
            entry.add_moments(*moments)
        pairs = [piece.pairs(step, self.stride) for piece in block.pieces for step in range(horizon)]
        deltas = np.concatenate([actions[:, ahead] - state[:, now] for now, ahead in pairs], axis=1)
        for entry, values in zip(entries, deltas, strict=True):
            entry.add_values(values)


def delta_moments(state: np.ndarray, actions: np.ndarray, ends: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Yields count, mean and sum of squared deviations of actions[k] - state[t] over all t <= k < ends[t], by row.

    Sums over k are differences of running sums, taken about the state's mean, so that little cancels.

    Args:
        state: float32 [d, n].
        actions: float32 [d, m].
        ends: int64 [n], at most m.
    """
    frames, size = state.shape[1], actions.shape[1]
    steps = (ends - np.arange(frames)).astype(np.float64)
    # How many t hold each k: those that began, less those that ended.
    begun = np.arange(size) < frames
    held = np.cumsum(begun - np.bincount(ends, minlength=size)[:size]).astype(np.float64)
    count = float(steps.sum())
    running = np.zeros(size + 1)
    for row, ahead in zip(state, actions, strict=True):
        middle = row.mean(dtype=np.float64)
        origin, values = (np.subtract(array, middle, dtype=np.float64) for array in (row, ahead))
        np.cumsum(values, out=running[1:])
        sums = running.take(ends)
        sums -= running[:frames]
        mean = float(np.einsum("i,i", held, values) - np.einsum("i,i", steps, origin)) / count
        origin += mean  # deviations from the mean: values - origin
        squares = np.einsum("i,i,i", held, values, values) + np.einsum("i,i,i", steps, origin, origin)
        yield count, mean, max(float(squares - 2 * np.einsum("i,i", origin, sums)), 0.0)


def _range(layout: Layout, name: str) -> range:
    where = layout.slice(name)
    return range(where.start, where.stop)
