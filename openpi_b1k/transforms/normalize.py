"""Statistics of state and actions, and the scaling they define.

Quantile: q01 -> -1, q99 -> 1. Z-score: mean -> 0, one standard deviation -> 1. An entry that hardly varies keeps its
own unit instead of being divided by almost nothing; q01 (or the mean) still lands where openpi puts it, so that a
checkpoint of openpi's that saw such an entry constant reads and writes the same numbers here.
Source of the formulas and of EPSILON: openpi `transforms.py` and `shared/normalize.py` at 15a9616.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from openpi_b1k.config.data import Normalization
from openpi_b1k.robots.layout import Layout, Robot
from openpi_b1k.transforms.base import Sample

EPSILON = 1e-6  # openpi adds it to the divisor
NEAR_CONSTANT = 1e-4  # in the entry's own unit: a tenth of a millimetre, a hundredth of a degree
STATISTICS = ("mean", "std", "q01", "q99")


@dataclasses.dataclass(frozen=True, eq=False)
class FieldStats:
    """Statistics of each entry of a vector, all float64 [size]; of actions also [ah, size], by step of the chunk."""

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    def __post_init__(self) -> None:
        for name in STATISTICS:
            object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
        shapes = {name: getattr(self, name).shape for name in STATISTICS}
        if len(set(shapes.values())) != 1 or self.mean.ndim not in (1, 2):
            raise ValueError(f"norm stats must be vectors of one size, or tables of one shape; got {shapes}")
        for name in STATISTICS:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"norm stats must be finite; {name} is {getattr(self, name).tolist()}")
        is_bad = (self.std < 0) | (self.q99 < self.q01)
        if is_bad.any():
            entries = np.unique(np.nonzero(is_bad)[-1]).tolist()
            raise ValueError(f"norm stats must have std >= 0 and q99 >= q01; not so in entries {entries}")

    def first(self, size: int, name: str) -> "FieldStats":
        """Returns the first `size` entries; more are accepted only as zero padding, which openpi's files may hold.

        Raises:
            ValueError: there are fewer, or the rest is not zero.
        """
        given = self.mean.shape[-1]
        values = {statistic: getattr(self, statistic) for statistic in STATISTICS}
        if given < size or any(value[..., size:].any() for value in values.values()):
            raise ValueError(
                f"norm stats of {name} must have {size} entries, or more that are all zero (padding); got {given}; "
                "they belong to another robot or data set: compute them with `uv run scripts/compute_norm_stats.py`"
            )
        return FieldStats(**{statistic: value[..., :size] for statistic, value in values.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class NormStats:
    """Statistics of what `Normalize` sees: the state, and the actions after the delta transform."""

    state: FieldStats
    actions: FieldStats

    def for_robot(self, robot: Robot) -> "NormStats":
        """Returns the statistics without padding, checked against the robot's sizes.

        Raises:
            ValueError: they do not fit the robot.
        """
        return NormStats(self.state.first(robot.state.size, "state"), self.actions.first(robot.action.size, "actions"))

    def to_json(self) -> str:
        """Returns openpi's norm_stats.json as text; every float64 survives the round trip."""
        fields = {"state": self.state, "actions": self.actions}
        stats = {
            name: {statistic: getattr(field, statistic).tolist() for statistic in STATISTICS}
            for name, field in fields.items()
        }
        return json.dumps({"norm_stats": stats}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "NormStats":
        """Returns the statistics in the text of a norm_stats.json, ours or openpi's, padding included.

        Raises:
            ValueError: the text is not JSON, or a statistic is missing or malformed.
        """
        content = json.loads(text)
        return NormStats(_field_from_json(content, "state"), _field_from_json(content, "actions"))


def _field_from_json(content: Any, name: str) -> FieldStats:  # Any: what json.loads returned
    try:
        field = content["norm_stats"][name]
        values = {statistic: field[statistic] for statistic in STATISTICS}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'norm stats must be {{"norm_stats": {{"state": ..., "actions": ...}}}} with {", ".join(STATISTICS)} '
            f"in each; {name} lacks {error}"
        ) from error
    absent = [statistic for statistic, value in values.items() if value is None]
    if absent:
        raise ValueError(f"norm stats of {name} hold no {', '.join(absent)}; compute them anew with this version")
    return FieldStats(**values)


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """normalised = (value - offset) / scale + shift, per entry of the last axis."""

    offset: np.ndarray
    scale: np.ndarray
    shift: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Returns normalised values, float64 [..., size]."""
        return (values - self.offset) / self.scale + self.shift

    def invert(self, normalized: np.ndarray) -> np.ndarray:
        """Returns the values that `apply` would normalise to `normalized`, float64 [..., size]."""
        return (normalized - self.shift) * self.scale + self.offset


def spread(stats: FieldStats, normalization: Normalization) -> np.ndarray:
    """Returns what the normalisation divides by: q99 - q01, or the standard deviation."""
    return stats.q99 - stats.q01 if normalization == "quantile" else stats.std


def scaling(stats: FieldStats, normalization: Normalization) -> Scaling:
    """Returns the scaling of one vector. Entries with a spread below NEAR_CONSTANT get slope 1 in their own unit."""
    values = spread(stats, normalization)
    is_quantile = normalization == "quantile"
    # Halving the span is exact in floating point, so this is (x - q01) / (q99 - q01 + EPSILON) * 2 - 1 to the bit.
    scale = (values + EPSILON) / 2 if is_quantile else values + EPSILON
    return Scaling(
        offset=stats.q01 if is_quantile else stats.mean,
        scale=np.where(values < NEAR_CONSTANT, 1.0, scale),
        shift=-1.0 if is_quantile else 0.0,
    )


def near_constant(norm_stats: NormStats, robot: Robot, normalization: Normalization) -> tuple[str, ...]:
    """Returns the entries the guard applies to, at any step, such as `actions.base[1]`: worth a line in the log."""
    stats = norm_stats.for_robot(robot)
    return tuple(
        f"{name}.{entry}"
        for name, field, layout in (("state", stats.state, robot.state), ("actions", stats.actions, robot.action))
        for entry, value in zip(_entry_names(layout), _least(spread(field, normalization)), strict=True)
        if value < NEAR_CONSTANT
    )


def _least(values: np.ndarray) -> np.ndarray:
    """Returns the least of each entry over the steps of [size] or [ah, size]."""
    return np.atleast_2d(values).min(axis=0)


def _entry_names(layout: Layout) -> list[str]:
    return [f"{field.name}[{index}]" for field in layout.fields for index in range(field.size)]


@dataclasses.dataclass(frozen=True, eq=False)
class Normalize:
    """Normalises `state` [..., s] and, where there are any, `actions` [..., ah, ad]; float64 results."""

    norm_stats: NormStats
    normalization: Normalization
    clip: float | None
    """Results are limited to [-clip, clip]; None leaves them as they are."""

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with normalised state and actions."""
        normalized = {"state": self._limit(self._scalings[0].apply(sample["state"]))}
        if "actions" in sample:
            normalized["actions"] = self._limit(self._scalings[1].apply(sample["actions"]))
        return sample | normalized

    def _limit(self, values: np.ndarray) -> np.ndarray:
        return values if self.clip is None else np.minimum(np.maximum(values, -self.clip), self.clip)

    @functools.cached_property
    def _scalings(self) -> tuple[Scaling, Scaling]:
        stats = self.norm_stats
        return scaling(stats.state, self.normalization), scaling(stats.actions, self.normalization)


@dataclasses.dataclass(frozen=True, eq=False)
class Unnormalize:
    """Inverse of `Normalize` for `actions` [..., ah, ad], clipping aside; float64 result."""

    norm_stats: NormStats
    normalization: Normalization

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with actions in the robot's units."""
        return sample | {"actions": self._scaling.invert(sample["actions"])}

    @functools.cached_property
    def _scaling(self) -> Scaling:
        return scaling(self.norm_stats.actions, self.normalization)
