"""What a run's directory says about it: curves of its metrics, sampled actions, checkpoints, and what to worry about.

Only files are read, and each may be missing: the run may still be going, or have no held-out episodes.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from openpi_b1k.checkpoints.contents import CONFIG_FILE, INFO_FILE, completed_checkpoints
from openpi_b1k.robots.r1pro import ACTION

MAX_POINTS = 1500
"""Of a curve; longer ones are thinned, their last point kept."""
MAX_DATA_WAIT = 0.05
SECTIONS = ("Learning", "Held-out episodes", "Speed and memory", "Other")
_UNITS = {field.name: field.unit.split(":")[0] for field in ACTION.fields}
_SPEED = {
    "samples_per_s": "Samples per second",
    "samples_per_s_per_device": "Samples per second",
    "step_time_s": "Seconds per step",
    "mfu": "Share of the devices' peak (MFU)",
    "data_wait": "Share of the time spent waiting for data",
    "device_memory_gb": "Memory in GB",
    "host_memory_gb": "Memory in GB",
    "checkpoint_stall_s": "Seconds stood still",
    "validation_s": "Seconds stood still",
    "skipped_samples": "Skipped per line",
    "skipped_updates": "Skipped per line",
}
_LEARNING = {
    "loss": ("Loss", "training"),
    "learning_rate": ("Learning rate", "learning rate"),
    "param_norm": ("Norm of the trained parameters", "norm"),
}
_BY_STEP = "Error of sampled actions by step of the chunk:"
_NORMS = {"grad_norm": "Norm of the gradients", "update_norm": "Norm of the updates"}

Line = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve of a chart."""

    name: str
    points: list[tuple[float, float]]
    colour: int | None = None
    """Which of the page's colours; default: the curve's place in its chart."""
    is_dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    title: str
    series: tuple[Series, ...]
    x_name: str = "step"
    section: str = "Other"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One held-out sample: the actions that were demonstrated, and those the model made of the same observation."""

    true: np.ndarray
    """[ah, ad] in the fields' units, without steps past the episode's end."""
    predicted: np.ndarray
    prompt: str
    place: str
    """Episode and frame."""
    image: np.ndarray | None
    """[height, width, 3] uint8."""


@dataclasses.dataclass(frozen=True)
class CheckpointRow:
    """What the table of checkpoints shows."""

    step: int
    saved_at: float | None
    num_bytes: int
    is_best: bool


def read_lines(run: pathlib.Path) -> list[Line]:
    """Returns the lines of `metrics.jsonl`, less one that is being written.

    Raises:
        FileNotFoundError: there is no such file, so `run` is no run's directory.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; give the directory of a run, <checkpoint_dir>/<recipe>/<exp_name>, after its first line"
        )
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def charts(lines: Iterable[Line]) -> list[Chart]:
    """Returns a chart for each kind of metric, in the order of SECTIONS; values that are not finite are left out."""
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("step", "unix_time") and math.isfinite(value):
                section, title, name = _place(key)
                curves.setdefault((section, title), {}).setdefault(name, []).append((line["step"], value))
    found = [
        Chart(title, tuple(Series(name, thinned(points)) for name, points in series.items()), section=section)
        for (section, title), series in curves.items()
    ]
    return sorted(found, key=lambda chart: (SECTIONS.index(chart.section), chart.title.startswith(_BY_STEP)))


def _place(key: str) -> tuple[str, str, str]:
    """Returns section, chart and curve of a metric."""
    head, _, rest = key.partition("/")
    if key in _LEARNING:
        return ("Learning", *_LEARNING[key])
    if head in _NORMS:
        return "Learning", _NORMS[head], rest or "all"
    if head == "loss":
        return "Learning", "Loss by field" if rest in _UNITS else "Loss by source", rest
    if key in _SPEED:
        return "Speed and memory", _SPEED[key], key.removesuffix("_gb").replace("_", " ")
    if head == "validation":
        return "Held-out episodes", *_validation(rest)
    return "Other", key, key


def _validation(rest: str) -> tuple[str, str]:
    """Returns chart and curve of a metric of the held-out episodes."""
    field, _, step = rest.partition("/")
    if step:
        return f"{_BY_STEP} {field}", step.replace("_", " ")
    if field in _UNITS:
        return f"Mean error of sampled actions in {_UNITS[field]}", field
    if field.endswith("_accuracy"):
        return "Gripper decisions that agree, as a share", field.removesuffix("_accuracy")
    return field.replace("_", " ").capitalize(), field


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most about MAX_POINTS of the points, evenly, the last among them."""
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    return points[(len(points) - 1) % stride :: stride]


def validation_steps(run: pathlib.Path) -> list[int]:
    """Returns the steps whose sampled actions are stored, ascending."""
    return sorted(int(path.stem) for path in (run / "validation").glob("*.npz") if path.stem.isdecimal())


def read_chunks(run: pathlib.Path, step: int) -> list[Chunk]:
    """Returns the sampled actions that are stored of a step."""
    with np.load(run / "validation" / f"{step}.npz") as stored:
        arrays = dict(stored)
    true, predicted = arrays["true_actions"], arrays["predicted_actions"]
    masks = arrays.get("step_mask", np.ones(true.shape[:2], bool))
    images = arrays.get("images", ())
    unknown = ["?"] * len(true)
    return [
        Chunk(
            true=true[i][masks[i], : ACTION.size],
            predicted=predicted[i][masks[i], : ACTION.size],
            prompt=str(arrays.get("prompts", unknown)[i]),
            place=f"episode {arrays.get('episodes', unknown)[i]}, frame {arrays.get('frames', unknown)[i]}",
            image=images[i] if i < len(images) else None,
        )
        for i in range(len(true))
    ]


def chunk_charts(chunk: Chunk) -> list[Chart]:
    """Returns a chart for each action field: each dim demonstrated, and dashed in the same colour predicted."""
    found = []
    for field in ACTION.fields:
        dims = range(*ACTION.slice(field.name).indices(ACTION.size))
        series = []
        for colour, dim in enumerate(dims):
            for name, actions, is_dashed in (("true", chunk.true, False), ("predicted", chunk.predicted, True)):
                points = [(float(step), float(value)) for step, value in enumerate(actions[:, dim], start=1)]
                series.append(Series(f"{name} {colour}", points, colour, is_dashed))
        unit = field.unit.removeprefix("1: ")
        found.append(Chart(f"{field.name}: {unit}", tuple(series), x_name="step of the chunk"))
    return found


def read_best(run: pathlib.Path) -> dict[str, Any]:  # Any: JSON
    """Returns step, metric and value of the best checkpoint; nothing where none is recorded."""
    path = run / "best.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def checkpoints(run: pathlib.Path) -> list[CheckpointRow]:
    """Returns the complete checkpoints, oldest first."""
    best = read_best(run).get("step")
    rows = []
    for step in completed_checkpoints(run):
        directory = run / str(step)
        info = directory / INFO_FILE
        saved_at = json.loads(info.read_text()).get("saved_at") if info.is_file() else None
        num_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        rows.append(CheckpointRow(step, saved_at, num_bytes, step == best))
    return rows


def read_config(run: pathlib.Path) -> dict[str, Any]:  # Any: JSON of whatever version
    """Returns the run's config, from its directory or its newest checkpoint; nothing before either is written."""
    directories = [run, *(run / str(step) for step in reversed(completed_checkpoints(run)))]
    for path in (directory / CONFIG_FILE for directory in directories):
        if path.is_file():
            return json.loads(path.read_text())
    return {}


def warnings(run: pathlib.Path, lines: list[Line]) -> list[str]:
    """Returns what the user should know, a sentence or two each."""
    found = []
    waiting = [line["data_wait"] for line in lines if "data_wait" in line]
    if waiting and np.median(waiting) > MAX_DATA_WAIT:
        found.append(
            f"In half of the lines, more than {100 * np.median(waiting):.0f} % of the time was spent waiting for data. "
            "Raise --data.num-workers, give --data.frame-cache-gib, or re-encode with scripts/prepare_dataset.py."
        )
    for name, what in (("skipped_updates", "updates"), ("skipped_samples", "samples")):
        total = sum(line.get(name, 0) for line in lines)
        if total:
            found.append(f"Skipped {what}: {total:.0f}; the log says which and why.")
    validated = [(line.get("validation/flow_loss", math.nan), line["step"]) for line in lines]
    losses = [(loss, step) for loss, step in validated if math.isfinite(loss)]
    if not losses:
        found.append("Nothing was validated: no line has validation/flow_loss.")
    elif losses[-1][0] > 1.1 * min(losses)[0]:
        found.append(
            f"The held-out flow loss is {losses[-1][0]:.4g}, and was {min(losses)[0]:.4g} at step {min(losses)[1]}: "
            "the run may be overfitting."
        )
    found += [
        f"{path.name}/ holds a batch that no update could be made of." for path in sorted(run.glob("nonfinite-*"))
    ]
    found += [f"{path.name} has the stacks of a step that took very long." for path in sorted(run.glob("stacks-*.txt"))]
    return found
