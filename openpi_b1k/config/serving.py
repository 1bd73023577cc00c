"""How predicted action chunks are executed: when the model is asked again, and what joins one chunk to the next."""

import dataclasses
from typing import Literal

from openpi_b1k.config.model import FORBID_EXTRA

ExecutionKind = Literal["receding_horizon", "temporal_ensemble", "receding_temporal", "real_time"]

APPLIES_TO: dict[str, tuple[ExecutionKind, ...]] = {
    "plan_horizon": ("temporal_ensemble", "receding_temporal"),
    "num_plans": ("temporal_ensemble", "receding_temporal"),
    "gripper_plan": ("temporal_ensemble", "receding_temporal"),
    "execute_in_steps": ("receding_horizon",),
    "kept_actions": ("receding_horizon",),
    "inpaint_until": ("receding_horizon",),
    "correlation": ("receding_horizon",),
    "initial_delay": ("real_time",),
    "max_guidance": ("real_time",),
}
"""Fields that only some kinds read; the others refuse them."""


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """How one environment's chunks are executed. Grippers are never averaged and never interpolated."""

    kind: ExecutionKind = "receding_horizon"
    """receding_horizon: the newest chunk alone; temporal_ensemble: the model is asked at every step and the last chunks
    averaged; receding_temporal: averaged as well, but asked every `execution_horizon` steps; real_time: the next
    chunk is computed while this one is executed, guided to agree with it (arXiv 2506.07339)."""
    execution_horizon: int | None = None
    """Actions executed before the model is asked again. Default: the whole chunk less `kept_actions`
    (receding_horizon), 1 (temporal_ensemble), half of the chunk (receding_temporal, real_time)."""
    plan_horizon: int | None = None
    """Actions of each chunk that take part in an average; default: all."""
    num_plans: int = 3
    """Most chunks averaged, the newest ones."""
    gripper_plan: Literal["newest", "oldest"] = "newest"
    """Chunk that commands the grippers; oldest is what openpi-comet's receding temporal mode does, to compare with."""
    execute_in_steps: int | None = None
    """Environment steps in which the `execution_horizon` actions are executed, resampled, 20 for 26 say; while a
    gripper moves, as many actions are executed as they are."""
    kept_actions: int = 0
    """Actions after the executed ones that the next chunk begins with, by soft inpainting; 0: none."""
    inpaint_until: float = 0.3
    """Flow time, in [0, 1), down to which the kept actions are held; below it the chunk flows freely."""
    correlation: str | None = None
    """File (.npy) with the correlation of normalised chunks, which carries the kept actions' correction on to the
    later ones; default: none, as if entries were independent."""
    initial_delay: int = 0
    """Environment steps between an observation and its chunk, at least, until longer ones have been measured."""
    max_guidance: float = 5.0
    """Upper bound of the guidance weight, above 0; larger ones agree with the old chunk more closely. Above
    twice the number of flow steps the integration overshoots."""

    __pydantic_config__ = FORBID_EXTRA

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = APPLIES_TO.get(field.name, (self.kind,))
            if self.kind not in kinds and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} has no effect with kind {self.kind!r}; it is for {' and '.join(kinds)}")
        for name in ("execution_horizon", "plan_horizon", "num_plans", "execute_in_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        for name in ("kept_actions", "initial_delay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.kind == "temporal_ensemble" and self.execution_horizon not in (None, 1):
            raise ValueError(
                "temporal_ensemble asks the model at every step, so execution_horizon must be 1; got "
                f"{self.execution_horizon}: receding_temporal asks every execution_horizon steps"
            )
        if self.execute_in_steps is not None and self.execution_horizon is None:
            raise ValueError("execute_in_steps needs execution_horizon, the number of actions that are resampled")
        if not 0 <= self.inpaint_until < 1:
            raise ValueError(f"inpaint_until is a flow time in [0, 1); got {self.inpaint_until}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("inpaint_until", "correlation"):
            if not self.kept_actions and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} has no effect without kept_actions")
        if not self.max_guidance > 0:
            raise ValueError(f"max_guidance must be above 0; got {self.max_guidance}")
