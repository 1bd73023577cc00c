"""One page about a training run, in one file that needs nothing else: curves, sampled actions, frames, checkpoints."""

import base64
import html
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from openpi_b1k.evaluation import run_report_data as data
from openpi_b1k.evaluation.report_page import CONTROLS, Page, tile, warnings
from openpi_b1k.evaluation.run_report_data import Chart, Line

TILES = {
    "loss": "training loss",
    "validation/flow_loss": "held-out flow loss",
    "samples_per_s": "samples per second",
    "mfu": "share of the peak (MFU)",
    "data_wait": "of the time waiting for data",
    "device_memory_gb": "GB on a device",
}
SHARES = ("mfu", "data_wait")
OPEN_CHUNKS = 2
"""Samples whose charts are unfolded at first."""


def write(run: pathlib.Path) -> pathlib.Path:
    """Writes `<run>/report.html` from what the run has written so far and returns its path.

    Raises:
        FileNotFoundError: `run` is no run's directory, or has no line of metrics yet.
    """
    lines = data.read_lines(run)
    page = Page()
    body = [
        _header(run, lines),
        warnings(data.warnings(run, lines)),
        CONTROLS,
        *_curves(page, data.charts(lines)),
        *_chunks(page, run),
        _first_batch(run),
        _checkpoints(run),
        _config(data.read_config(run)),
    ]
    return page.write(run / "report.html", f"{run.parent.name}/{run.name}", body)


def _header(run: pathlib.Path, lines: list[Line]) -> str:
    """Returns the run's name, how far it is, and its newest numbers."""
    config = data.read_config(run)
    newest: dict[str, float] = {}
    for line in lines:
        newest |= line
    step, total = int(newest.get("step", 0)), config.get("num_steps")
    how_far = f"step {step:,}" + (f" of {total:,}" if total else "")
    state = "complete" if total and step >= total else "last line " + _when(newest.get("unix_time"))
    tiles = [
        tile(f"{100 * newest[key]:.1f} %" if key in SHARES else f"{newest[key]:.4g}", label)
        for key, label in TILES.items()
        if key in newest
    ]
    best = data.read_best(run)
    if best:
        tiles.append(tile(f"step {best['step']:,}", f"best by {best.get('metric')}: {best.get('value'):.4g}"))
    return (
        f"<h1>{html.escape(run.parent.name)} / {html.escape(run.name)}</h1>"
        f'<p class="quiet">{how_far}, {state}. Page written {_when(time.time())}.</p>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _when(unix_time: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time)) if unix_time else "at an unknown time"


def _curves(page: Page, charts: list[Chart]) -> Iterable[str]:
    """Yields a section for each kind of metric that the run has."""
    for section in data.SECTIONS:
        figures = [page.figure(chart, is_metric=True) for chart in charts if chart.section == section]
        if figures:
            yield f'<h2>{section}</h2><div class="charts">{"".join(figures)}</div>'


def _chunks(page: Page, run: pathlib.Path) -> Iterable[str]:
    """Yields the sampled actions of the newest validation, a sample at a time."""
    steps = data.validation_steps(run)
    if not steps:
        return
    yield (
        f"<h2>Sampled actions after step {steps[-1]:,}</h2><p class='quiet'>Held-out observations: the chunk that was "
        "demonstrated, and dashed what the model makes of the same observation, in the fields' units.</p>"
    )
    for i, chunk in enumerate(data.read_chunks(run, steps[-1])):
        yield page.chunk(chunk, is_open=i < OPEN_CHUNKS)


def _first_batch(run: pathlib.Path) -> str:
    """Returns the picture of the first batch, where the run has one."""
    path = run / "first_batch.png"
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        '<h2>First batch</h2><details open><summary>As the model was given it</summary><img class="wide" '
        f'src="data:image/png;base64,{content}" alt="images, prompts, states and actions of the first batch"></details>'
    )


def _checkpoints(run: pathlib.Path) -> str:
    """Returns the table of complete checkpoints."""
    rows = [
        f"<tr><td>{row.step:,}</td><td>{_when(row.saved_at)}</td><td>{row.num_bytes / 1e9:.3g} GB</td>"
        f"<td>{'best' if row.is_best else ''}</td></tr>"
        for row in data.checkpoints(run)
    ]
    if not rows:
        return '<h2>Checkpoints</h2><p class="quiet">None is complete yet.</p>'
    head = "<tr><th>step</th><th>saved</th><th>on disk</th><th></th></tr>"
    return f"<h2>Checkpoints</h2><table>{head}{''.join(rows)}</table>"


def _config(config: Mapping[str, Any]) -> str:
    """Returns the run's config, a row for each value."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(json.dumps(value, ensure_ascii=False))}</td></tr>"
        for name, value in _flat(config)
        if name
    ]
    if not rows:
        return ""
    table = f"<table>{''.join(rows)}</table>"
    return f"<h2>Config</h2><details><summary>{len(rows)} values</summary>{table}</details>"


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:  # Any: JSON
    """Returns (dotted name, value) for each leaf of a config as JSON; lists of objects are numbered."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        return [(name, value)]
    return [leaf for key, part in parts for leaf in _flat(part, f"{name}.{key}" if name else str(key))]
