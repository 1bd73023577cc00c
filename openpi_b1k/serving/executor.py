"""What executes one environment's chunks: which actions are known, and when the model has to be asked again.

Steps are counted in actions handed out since the last reset. A plan is a chunk with the step of its observation: it
says what to do from there on.

    step             0  1  2  3  4  5  6  7  8  9
    plan seen at 0   a0 a1 a2 a3 a4 a5 a6 a7
    plan seen at 4               b0 b1 b2 b3 b4 b5 ...

A chunk may come late: until it is there the plans at hand go on while they last, and of a late chunk the actions whose
steps have passed are left out. A chunk asked for before a reset, or seen before the newest plan was, is ignored.

Real-time chunking makes a virtue of it: a chunk that is due is computed while the plan goes on.
"""

import abc
import dataclasses

import numpy as np

from openpi_b1k.robots.layout import Layout


@dataclasses.dataclass(frozen=True)
class Moment:
    """When an observation was made."""

    episode: int
    """Resets before it."""
    step: int
    """Actions handed out before it since the last reset."""


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """What the next chunk should agree with, if its sampler can be told."""

    actions: np.ndarray
    """float32 [n, a], n >= 1: the next actions of the plan that is being executed, in the robot's units."""
    num_fixed: int
    """How many of them will be executed whatever the next chunk says, in [0, n]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Actions for consecutive steps."""

    start: int
    """Step of the first."""
    actions: np.ndarray
    """float32 [n, a]."""

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.start + len(self.actions)

    def covers(self, step: int) -> bool:
        """Returns whether there is an action for `step`."""
        return self.start <= step < self.end

    def action(self, step: int) -> np.ndarray:
        """Returns the action for a step that the plan covers."""
        return self.actions[step - self.start]


class Executor(abc.ABC):
    """Executes one environment's chunks; not for several threads at once."""

    def __init__(self, layout: Layout, action_horizon: int) -> None:
        """Starts without a plan.

        Args:
            layout: of the actions, `a` entries.
            action_horizon: actions per chunk.
        """
        self._layout, self._action_horizon = layout, action_horizon
        self._episode = self._step = 0

    def now(self) -> Moment:
        """Returns the moment that an observation made now belongs to; for `accept`, where the chunk may be late."""
        return Moment(self._episode, self._step)

    def needs_chunk(self, num_actions: int = 1) -> bool:
        """Returns whether the model is due to be asked before the next `num_actions` actions have been handed out."""
        return self._due_step() < self._step + num_actions

    def can_go_on(self, num_actions: int = 1) -> bool:
        """Returns whether the next `num_actions` actions may be handed out before another chunk is there."""
        return self._step + num_actions <= self._end_step()

    def accept(self, chunk: np.ndarray, observed: Moment | None = None) -> bool:
        """Takes a chunk over; returns whether it is of use, rather than outdated.

        Args:
            chunk: [action horizon, a] in the robot's units.
            observed: when the observation was made that it answers; default: now. A further chunk for the same
                observation replaces the first.

        Raises:
            ValueError: the chunk has another shape, or holds numbers that are none; the executor is as before.
        """
        expected = (self._action_horizon, self._layout.size)
        if chunk.shape != expected:
            raise ValueError(f"a chunk must be [action horizon, action entries] {list(expected)}; got {[*chunk.shape]}")
        if not np.isfinite(chunk).all():
            raise ValueError(
                f"the chunk holds {np.count_nonzero(~np.isfinite(chunk))} entries that are NaN or infinite"
            )
        observed = observed or self.now()
        if observed.episode != self._episode:
            return False
        return self._adopt(observed.step, chunk.astype(np.float32))

    def next_action(self) -> np.ndarray:
        """Returns the action for the present step, float32 [a], and goes on to the next step.

        Raises:
            RuntimeError: no plan reaches this step.
        """
        action = self._action_at(self._step)
        if action is None:
            raise RuntimeError(
                f"no action is known for step {self._step}: accept a chunk whenever needs_chunk() is true"
            )
        self._step += 1
        return action

    def remaining(self, num_actions: int) -> np.ndarray:
        """Returns the next actions, at most `num_actions`, that may be handed out before another chunk; float32 [n, a].

        They stay to be handed out: `next_action` returns the same ones.
        """
        steps = range(self._step, min(self._step + num_actions, self._end_step()))
        actions = [action for step in steps if (action := self._action_at(step)) is not None]
        return np.stack(actions) if actions else np.zeros((0, self._layout.size), np.float32)

    def reset(self) -> None:
        """Forgets all plans: a new episode begins. Chunks asked for before are ignored when they come."""
        self._episode, self._step = self._episode + 1, 0
        self._forget()

    def continuation(self, num_actions: int = 0) -> Continuation | None:
        """Returns what a chunk asked for now should agree with; None where it is free.

        Args:
            num_actions: how many actions are handed out at once, whatever the chunk will say.
        """
        del num_actions
        return None

    @abc.abstractmethod
    def _adopt(self, start: int, chunk: np.ndarray) -> bool:
        """Makes a chunk observed at step `start` a plan; returns whether it is of use."""

    @abc.abstractmethod
    def _due_step(self) -> int:
        """Returns the step at which the model is due; 0 without a plan."""

    def _end_step(self) -> int:
        """Returns the step at which another chunk must be there: when it is due, unless the plan goes on meanwhile."""
        return self._due_step()

    @abc.abstractmethod
    def _action_at(self, step: int) -> np.ndarray | None:
        """Returns a new array with the action for this or a later step; None if it is not known."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Drops all plans."""
