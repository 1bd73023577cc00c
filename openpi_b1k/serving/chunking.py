"""The ways to execute chunks, one executor per environment.

    executor = make_executor(config, layout, action_horizon)
    if executor.needs_chunk():
        executor.accept(chunk)      # predicted from the observation of this step
    action = executor.next_action()

Either the newest plan alone acts, or the mean of the latest ones; grippers always follow one plan.
"""

import collections

import numpy as np

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.robots.chunk_errors import is_gripper
from openpi_b1k.robots.layout import Layout
from openpi_b1k.serving.executor import Continuation, Executor, Plan
from openpi_b1k.serving.resampling import moves_gripper, resample, spline_matrix

WEIGHT_GROWTH = 0.005
"""Of an average of plans: each newer one weighs exp(0.005) times the one before it."""
NUM_DELAYS = 10
"""Latest delays of which the longest is expected next."""


class NewestPlan(Executor):
    """Executes the newest chunk alone: receding horizon, and real-time chunking."""

    def __init__(self, layout: Layout, action_horizon: int, config: ExecutionConfig, execution_horizon: int) -> None:
        """Starts without a plan; `make_executor` has checked that the numbers go together."""
        super().__init__(layout, action_horizon)
        if config.execute_in_steps is not None:
            spline_matrix(execution_horizon, config.execute_in_steps)  # refuses too few actions now, not in an episode
        self._config, self._execution_horizon = config, execution_horizon
        self._plan: Plan | None = None
        self._due = 0
        self._kept: np.ndarray | None = None  # of a resampled plan: the actions after the executed ones
        self._delays: collections.deque[int] = collections.deque([config.initial_delay], maxlen=NUM_DELAYS)

    def continuation(self, num_actions: int = 0) -> Continuation | None:
        """Returns what a chunk asked for now should agree with; None where it is free.

        Real-time: the rest of the plan, of which the longest recent delay's actions are fixed, and at least the
        `num_actions` handed out at once. Otherwise the kept actions, those after the executed ones; a resampled
        plan that is interrupted early has none.
        """
        if self._plan is None or not self._plan.covers(self._step):
            return self._kept_after_resampling()
        rest = self._plan.actions[self._step - self._plan.start :]
        if self._config.kind == "real_time":
            return Continuation(rest.copy(), min(max(num_actions, *self._delays), len(rest)))
        num_kept = self._config.kept_actions
        if not num_kept or self._kept is not None:
            return None
        return Continuation(rest[:num_kept].copy(), min(num_kept, len(rest)))

    def _kept_after_resampling(self) -> Continuation | None:
        if self._kept is None or self._plan is None or self._step != self._plan.end:
            return None
        return Continuation(self._kept.copy(), len(self._kept))

    def _adopt(self, start: int, chunk: np.ndarray) -> bool:
        actions, num_executed, kept = chunk, self._execution_horizon, None
        num_steps = self._config.execute_in_steps
        if num_steps is not None:
            executed, num_executed = chunk[: self._execution_horizon], num_steps
            if not moves_gripper(executed, self._layout):
                actions = resample(executed, num_steps, self._layout)
                kept = chunk[self._execution_horizon :][: self._config.kept_actions]
        plan = Plan(start, actions)
        if not start <= self._step < plan.end or (self._plan is not None and start < self._plan.start):
            return False
        self._plan, self._due = plan, start + num_executed
        self._kept = kept if kept is not None and len(kept) else None
        self._delays.append(max(self._step - start, self._config.initial_delay))
        return True

    def _due_step(self) -> int:
        return self._due

    def _end_step(self) -> int:
        if self._config.kind == "real_time" and self._plan is not None:
            return self._plan.end
        return self._due

    def _action_at(self, step: int) -> np.ndarray | None:
        return self._plan.action(step).copy() if self._plan is not None and self._plan.covers(step) else None

    def _forget(self) -> None:
        self._plan, self._due, self._kept = None, 0, None


class PlanAverage(Executor):
    """Executes the weighted mean of the latest chunks: temporal ensemble, and receding temporal.

    Of n plans that cover a step the i-th, counted from the oldest, weighs exp(0.005 i) / sum; grippers follow one plan.
    Source: openpi-comet `shared/eval_b1k_wrapper.py`.
    """

    def __init__(self, layout: Layout, action_horizon: int, config: ExecutionConfig, execution_horizon: int) -> None:
        """Starts without a plan; `make_executor` has checked that the numbers go together."""
        super().__init__(layout, action_horizon)
        self._config, self._execution_horizon = config, execution_horizon
        self._plans: list[Plan] = []

    def _adopt(self, start: int, chunk: np.ndarray) -> bool:
        plan = Plan(start, chunk[: self._config.plan_horizon])
        if not start <= self._step < plan.end or (self._plans and start < self._plans[-1].start):
            return False
        older = [one for one in self._plans if one.start != start]
        self._plans = [*older, plan][-self._config.num_plans :]
        return True

    def _due_step(self) -> int:
        if not self._plans:
            return 0
        return min(self._plans[-1].start + self._execution_horizon, self._plans[-1].end)

    def _action_at(self, step: int) -> np.ndarray | None:
        plans = [plan for plan in self._plans if plan.covers(step)]
        if not plans:
            return None
        actions = np.stack([plan.action(step) for plan in plans]).astype(np.float64)
        weights = np.exp(WEIGHT_GROWTH * np.arange(len(plans)))
        mean = (weights / weights.sum()) @ actions
        commanding = actions[-1 if self._config.gripper_plan == "newest" else 0]
        for name in filter(is_gripper, self._layout.names):
            mean[self._layout.slice(name)] = commanding[self._layout.slice(name)]
        return mean.astype(np.float32)

    def _forget(self) -> None:
        self._plans = []


def make_executor(config: ExecutionConfig, layout: Layout, action_horizon: int) -> Executor:
    """Returns an executor without a plan, for one environment.

    Args:
        config: how chunks are executed.
        layout: of the robot's actions.
        action_horizon: actions per chunk.

    Raises:
        ValueError: the config asks for more actions than a chunk has.
    """
    horizon = execution_horizon(config, action_horizon)
    match config.kind:
        case "receding_horizon" | "real_time":
            return NewestPlan(layout, action_horizon, config, horizon)
        case "temporal_ensemble" | "receding_temporal":
            return PlanAverage(layout, action_horizon, config, horizon)


def execution_horizon(config: ExecutionConfig, action_horizon: int) -> int:
    """Returns how many actions of a chunk are executed before the model is asked again.

    Raises:
        ValueError: the config asks for more actions than a chunk has.
    """
    defaults = {
        "receding_horizon": action_horizon - config.kept_actions,
        "temporal_ensemble": 1,
        "receding_temporal": (action_horizon + 1) // 2,
        "real_time": (action_horizon + 1) // 2,
    }
    horizon = defaults[config.kind] if config.execution_horizon is None else config.execution_horizon
    for name, value in {
        "execution_horizon": horizon,
        "execution_horizon + kept_actions": horizon + config.kept_actions,
        "execute_in_steps + kept_actions": (config.execute_in_steps or 1) + config.kept_actions,
        "plan_horizon": config.plan_horizon or 1,
        "execution_horizon + initial_delay": horizon + config.initial_delay,
    }.items():
        if not 1 <= value <= action_horizon:
            raise ValueError(f"{name} must lie in [1, {action_horizon}], the actions of a chunk; got {value}")
    if (config.plan_horizon or horizon) < horizon:
        raise ValueError(f"plan_horizon {config.plan_horizon} must not be below the execution horizon {horizon}")
    return horizon
