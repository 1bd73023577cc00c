"""The rows of parquet files: lengths, times, values against limits, gripper signs, motion."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi_b1k.curation.contents import Contents
from openpi_b1k.curation.findings import Finding
from openpi_b1k.data.index.listing import ACTION, PROPRIO
from openpi_b1k.data.index.trimming import moving_window
from openpi_b1k.robots.layout import Layout
from openpi_b1k.robots.r1pro import ACTION as ACTION_LAYOUT
from openpi_b1k.robots.r1pro import ACTION_LIMITS, PROPRIO_IN_USE, r1pro

EPISODE, TIMESTAMP, TASK = "episode_index", "timestamp", "task_index"
TIME_TOLERANCE_S = 1e-3
"""float32 seconds of the longest episodes are right to 1e-4."""
FINGER_LIMITS_M = (0.0, 0.05)
"""Source: JOINT_RANGE of OmniGibson's 2025 `eval_utils.py`."""
FAR = 0.1
"""Of a range; values nearer to it may be noise."""
LAG_FRAMES = 15
"""That fingers are given to follow a command."""
LEAST_OPENING_M = 0.005
"""Fingers that move less than this, summed, tell nothing about signs."""


Found = Callable[[str, str], None]
"""Takes a kind and a detail."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowsPart:
    """What the rows of some files showed; parts add up."""

    findings: list[Finding]
    statistics: dict[str, dict[str, Any]]
    """"state" and "action": count, and lists min, max, sum, squares by entry."""
    idle: list[tuple[int, int, int]]
    """(episode, idle frames at the start, at the end)."""


def in_use(proprio: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns the entries [n, 25] of proprio [n, p] that states are made of."""
    return np.concatenate([proprio[:, layout.slice(field.name)] for field in PROPRIO_IN_USE.fields], axis=1)


def limits_in_use() -> np.ndarray:
    """Returns (lower, upper) of each entry in use, [25, 2]; joints have their command's, base velocities none."""
    robot = r1pro("like_action")
    by_proprio = {source.proprio_field: name for name, source in robot.sources}
    limits = np.tile([-np.inf, np.inf], (PROPRIO_IN_USE.size, 1))
    for field in PROPRIO_IN_USE.fields:
        name = by_proprio[field.name]
        if name.endswith("gripper"):
            limits[PROPRIO_IN_USE.slice(field.name)] = FINGER_LIMITS_M
        elif name != "base":
            limits[PROPRIO_IN_USE.slice(field.name)] = ACTION_LIMITS[ACTION_LAYOUT.slice(name)]
    return limits


def audit_file(contents: Contents, file: str, rows: np.ndarray) -> RowsPart:
    """Returns what the rows of a parquet file show.

    Args:
        contents: of the data set.
        file: relative to its root, and there.
        rows: of the index, whose episodes it holds.
    """
    part = RowsPart([], {}, [])
    try:
        table = read(contents.root / file)
    except (OSError, ValueError, pa.ArrowException) as error:
        part.findings.append(Finding("corrupt file", file, str(error).splitlines()[0]))
        return part
    numbers = table[EPISODE].to_numpy()
    for row in rows.tolist():
        number, length = int(contents.index.numbers[row]), int(contents.index.lengths[row])
        first = int(contents.index.first_rows[row])
        places = np.flatnonzero(numbers == number)
        if len(places) != length or (length and (places[0] != first or places[-1] != first + length - 1)):
            at = f", from row {places[0]}" if len(places) else ""
            detail = f"{len(places)} rows{at}; meta/ says {length}, from row {first}"
            part.findings.append(Finding("length mismatch", file, detail, number))
            continue
        _audit_episode(contents, part, (file, row), table.slice(first, length))
    return part


def read(path: pathlib.Path) -> pa.Table:
    """Returns the columns that are audited.

    Raises:
        OSError: the file cannot be read.
        ArrowException: it is damaged.
        ValueError: it lacks columns, or a vector has another size in some row.
    """
    with pq.ParquetFile(path) as file:
        held = file.schema_arrow.names
        missing = [name for name in (EPISODE, TIMESTAMP, PROPRIO, ACTION) if name not in held]
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(missing)}")
        order = [name for name in ("frame_index", "index") if name in held][:1]
        return file.read([EPISODE, TIMESTAMP, PROPRIO, ACTION, *order, *([TASK] if TASK in held else [])])


def vectors(table: pa.Table, name: str) -> np.ndarray:
    """Returns a column of vectors as [n, size].

    Raises:
        ValueError: they are not all of one size.
    """
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if not table.num_rows or len(flat) % table.num_rows:
        raise ValueError(f"its column {name} has vectors of several sizes, or values missing")
    return flat.reshape(table.num_rows, -1)


def _audit_episode(contents: Contents, part: RowsPart, place: tuple[str, int], table: pa.Table) -> None:
    file, row = place
    index = contents.index
    number = int(index.numbers[row])

    def found(kind: str, detail: str) -> None:
        part.findings.append(Finding(kind, file, detail, number))

    _audit_order(table, index.fps, int(index.tasks[row]), found)
    try:
        proprio, actions = vectors(table, PROPRIO), vectors(table, ACTION)
        state = in_use(proprio, r1pro("like_action").proprio(proprio.shape[1]))
    except ValueError as error:
        found("corrupt file", str(error))
        return
    bad = ~np.isfinite(np.concatenate([state, actions], axis=1)).all(axis=1)
    if bad.any():
        found("not finite", f"{bad.sum()} rows, the first is row {bad.argmax()}")
        return
    if not np.isfinite(proprio).all():
        found("unused value", f"{(~np.isfinite(proprio)).any(axis=1).sum()} rows")
    _audit_limits("state", state, PROPRIO_IN_USE, limits_in_use(), found)
    _audit_limits("action", actions, ACTION_LAYOUT, np.array(ACTION_LIMITS), found)
    _audit_grippers(state, actions, found)
    window = moving_window(actions, ACTION_LAYOUT.slice("base"))
    if window is None:
        found("motionless", f"{len(actions)} rows with the same command")
    else:
        part.idle.append((number, window[0], len(actions) - window[1]))
    for name, values in (("state", state), ("action", actions)):
        part.statistics[name] = add_statistics(part.statistics.get(name), statistics_of(values))


def _audit_order(table: pa.Table, fps: int, task: int, found: Found) -> None:
    steps = np.arange(table.num_rows)
    off = np.abs(table[TIMESTAMP].to_numpy() - steps / fps)
    if not (off <= TIME_TOLERANCE_S).all():
        row = int((~(off <= TIME_TOLERANCE_S)).argmax())
        at = float(table[TIMESTAMP][row].as_py())
        found("bad timestamps", f"row {row} is at {at:.4f} s, expected {row / fps:.4f} s")
    if "frame_index" in table.column_names and (table["frame_index"].to_numpy() != steps).any():
        found("bad timestamps", "frame_index does not count 0, 1, 2, ...")
    if TASK in table.column_names and (table[TASK].to_numpy() != task).any():
        held = sorted(set(table[TASK].to_pylist()))
        found("wrong task", f"task_index {', '.join(map(str, held))}; meta/ says {task}")


def _audit_limits(group: str, values: np.ndarray, layout: Layout, limits: np.ndarray, found: Found) -> None:
    ranges = np.where(np.isfinite(limits).all(axis=1), limits[:, 1] - limits[:, 0], 1.0)
    beyond = np.maximum(limits[:, 0] - values, values - limits[:, 1]) / ranges
    for field in layout.fields:
        where = layout.slice(field.name)
        worst = beyond[:, where].max()
        if worst > 1e-6:
            row, entry = np.unravel_index(beyond[:, where].argmax(), beyond[:, where].shape)
            lower, upper = limits[where][entry]
            count = int((beyond[:, where] > 1e-6).any(axis=1).sum())
            found(
                "far outside limits" if worst > FAR else "outside limits",
                f"{group}.{field.name}[{entry}] is {values[row, where.start + entry]:.4g} in row {row}, limits "
                f"[{lower:g}, {upper:g}]; {count} rows",
            )


def _audit_grippers(state: np.ndarray, actions: np.ndarray, found: Found) -> None:
    """Compares how wide a gripper is some frames after it was told to open, or to close, and nothing else since."""
    for hand in ("left", "right"):
        command = actions[:, ACTION_LAYOUT.slice(f"{hand}_gripper")][:, 0] > 0
        width = state[:, PROPRIO_IN_USE.slice(f"gripper_{hand}_qpos")].sum(axis=1)
        if len(command) <= LAG_FRAMES:
            continue
        changes = np.concatenate([[0], np.cumsum(command[1:] != command[:-1])])
        is_settled = changes[LAG_FRAMES:] == changes[:-LAG_FRAMES]
        told, reached = command[LAG_FRAMES:][is_settled], width[LAG_FRAMES:][is_settled]
        if told.any() and not told.all():
            opening = float(reached[told].mean() - reached[~told].mean())
            if opening < -LEAST_OPENING_M:
                found("gripper sign", f"the {hand} gripper is {-opening:.3f} m wider when told to close")


def statistics_of(values: np.ndarray) -> dict[str, Any]:
    """Returns count, min, max, sum and sum of squares of [n, d] values as plain numbers."""
    exact = values.astype(np.float64)
    return {
        "count": len(exact),
        "min": exact.min(axis=0).tolist(),
        "max": exact.max(axis=0).tolist(),
        "sum": exact.sum(axis=0).tolist(),
        "squares": (exact**2).sum(axis=0).tolist(),
    }


def add_statistics(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Returns the statistics of both."""
    if one is None:
        return other
    merge = {"min": np.minimum, "max": np.maximum, "sum": np.add, "squares": np.add}
    merged = {name: combine(one[name], other[name]).tolist() for name, combine in merge.items()}
    return {"count": one["count"] + other["count"], **merged}
