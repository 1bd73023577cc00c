"""Statistics as text."""

import numpy as np

from openpi_b1k.config.data import Normalization
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.normalize import NormStats, near_constant


def table(stats: NormStats, robot: Robot, normalization: Normalization) -> str:
    """Returns the statistics as text, an entry a line; a star marks those too constant to divide by their spread.

    Of actions with statistics by step, those of the first and of the last step are shown.
    """
    guarded = near_constant(stats, robot, normalization)
    lines = [f"{'':34}{'mean':>12}{'std':>12}{'q01':>12}{'q99':>12}"]
    last_step = len(np.atleast_2d(stats.actions.mean)) - 1
    shown = [("state", stats.state, robot.state, 0)]
    shown += [("actions", stats.actions, robot.action, step) for step in sorted({0, last_step})]
    for group, fields, layout, step in shown:
        names = [f"{group}.{field.name}[{i}]" for field in layout.fields for i in range(field.size)]
        columns = [np.atleast_2d(array)[step] for array in (fields.mean, fields.std, fields.q01, fields.q99)]
        for name, *values in zip(names, *columns, strict=True):
            label = f"{name} step {step}" if fields.mean.ndim > 1 else name
            mark = " *" if name in guarded else ""
            lines.append(f"{label:34}" + "".join(f"{value:12.5g}" for value in values) + mark)
    return "\n".join(lines)


def described(stats: NormStats, robot: Robot, normalization: Normalization) -> str:
    """Returns the table and the entries that hardly vary."""
    guarded = near_constant(stats, robot, normalization)
    names = ", ".join(guarded) if guarded else "none"
    return f"{table(stats, robot, normalization)}\n* nearly constant, so not divided by its spread: {names}"
