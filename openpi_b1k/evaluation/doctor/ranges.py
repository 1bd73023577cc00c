"""Where normalised states and actions lie: what the network was told is [-1, 1], near enough."""

import dataclasses

import numpy as np

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.evaluation.doctor.findings import Finding
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames
from openpi_b1k.robots.layout import Layout, Robot
from openpi_b1k.transforms.normalize import Normalize, NormStats
from openpi_b1k.transforms.pipeline import statistics_pipeline

USUAL = {"quantile": 1.0, "zscore": 3.0}
"""Normalised values lie within this, but for a few percent."""
MARGIN = 0.05
"""Beyond the usual range by so much is outside: quantiles lie at its very end."""
MOSTLY = 0.5
"""Share of a field's values outside the range from which on it is a finding: healthy fields have some percent."""
UNCLIPPED = 10.0
"""Twice the default clip: values beyond it are seen in no healthy data."""


@dataclasses.dataclass(frozen=True)
class FieldRange:
    """Normalised values of one field."""

    name: str
    outside: float
    """Share of values outside the usual range."""
    largest: float
    """Absolute value."""

    def __str__(self) -> str:
        """Returns it as a phrase."""
        return f"{self.name}: {self.outside:.1%} outside the range, largest {self.largest:.3g}"


def measure(frames: ChosenFrames, robot: Robot, transforms: TransformConfig, stats: NormStats) -> list[FieldRange]:
    """Returns the ranges of state and actions over the whole windows of the chosen frames' episodes, before clipping.

    Actions are taken as the first of their chunk, and with statistics by step, as those of the first step.
    """
    index, columns = frames.index, frames.dataset.columns
    pipeline, normalize = (
        statistics_pipeline(transforms, robot),
        Normalize(_first_step(stats), transforms.normalization, None),
    )
    parts = []
    for row in np.unique(frames.rows).tolist():
        used = slice(int(index.begins[row]), int(index.ends[row]))
        proprio, actions = (values[used] for values in columns.episode(row))
        parts.append(normalize(pipeline({"proprio": proprio, "actions": actions[:, None]})))
    state = np.concatenate([part["state"] for part in parts])
    actions = np.concatenate([part["actions"][:, 0] for part in parts])
    bound = USUAL[transforms.normalization] + MARGIN
    return [*_fields("state", robot.state, state, bound), *_fields("actions", robot.action, actions, bound)]


def check(ranges: list[FieldRange], transforms: TransformConfig) -> list[Finding]:
    """Returns the findings about ranges: unclipped values far outside, and fields that are mostly outside."""
    found = []
    far = [field for field in ranges if field.largest > UNCLIPPED]
    if transforms.clip_normalized is None and far:
        found.append(Finding("clip", tuple(map(str, far))))
    mostly = [field for field in ranges if field.outside > MOSTLY]
    if mostly:
        found.append(Finding("ranges", tuple(map(str, mostly))))
    return found


def _fields(what: str, layout: Layout, values: np.ndarray, bound: float) -> list[FieldRange]:
    size = np.abs(values)
    return [
        FieldRange(f"{what}.{name}", float((part > bound).mean()), float(part.max()))
        for name, part in ((name, size[:, layout.slice(name)]) for name in layout.names)
    ]


def _first_step(stats: NormStats) -> NormStats:
    if stats.actions.mean.ndim == 1:
        return stats
    actions = dataclasses.replace(
        stats.actions, **{name: getattr(stats.actions, name)[0] for name in ("mean", "std", "q01", "q99")}
    )
    return dataclasses.replace(stats, actions=actions)
