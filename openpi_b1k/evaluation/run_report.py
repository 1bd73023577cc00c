"""One page about a training run, in one file that needs nothing else: curves, sampled actions, frames, checkpoints."""

import base64
import dataclasses
import html
import io
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from openpi_b1k.evaluation import run_report_data as data
from openpi_b1k.evaluation.run_report_data import Chart, Chunk, Line

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
DIGITS = 5
"""Significant digits of a number in the page."""


def write(run: pathlib.Path) -> pathlib.Path:
    """Writes `<run>/report.html` from what the run has written so far and returns its path.

    Raises:
        FileNotFoundError: `run` is no run's directory, or has no line of metrics yet.
    """
    lines = data.read_lines(run)
    page = _Page()
    body = [
        _header(run, lines),
        _warnings(data.warnings(run, lines)),
        _CONTROLS,
        *_curves(page, data.charts(lines)),
        *_chunks(page, run),
        _first_batch(run),
        _checkpoints(run),
        _config(data.read_config(run)),
    ]
    path = run / "report.html"
    unfinished = path.with_suffix(".html.new")
    unfinished.write_text(page.document(f"{run.parent.name}/{run.name}", body), encoding="utf-8")
    unfinished.replace(path)  # at once, since a browser may be reading it
    return path


class _Page:
    """The charts of a page, by number, and the frame around its body."""

    def __init__(self) -> None:
        self._charts: list[dict[str, Any]] = []  # Any: JSON

    def figure(self, chart: Chart, *, is_metric: bool) -> str:
        """Returns the place where the page's script draws a chart; metrics have smoothing and a logarithmic axis."""
        series = [
            {**dataclasses.asdict(one), "points": [[_rounded(x), _rounded(y)] for x, y in one.points]}
            for one in chart.series
        ]
        spec = {"title": chart.title, "x_name": chart.x_name, "series": series}
        self._charts.append(spec | {"section": chart.section} if is_metric else spec)
        return (
            f'<figure data-chart="{len(self._charts) - 1}"><figcaption>{html.escape(chart.title)}</figcaption>'
            '<div class="legend"></div><div class="tip" hidden></div></figure>'
        )

    def document(self, title: str, body: Iterable[str]) -> str:
        """Returns the page's HTML."""
        here = resources.files("openpi_b1k.evaluation")
        style, script = ((here / name).read_text(encoding="utf-8") for name in ("run_report.css", "run_report.js"))
        charts = json.dumps(self._charts, allow_nan=False).replace("<", "\\u003c")  # or a name could end the script
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{html.escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
            + "\n".join(body)
            + f'\n</main>\n<script type="application/json" id="charts">{charts}</script>\n'
            f"<script>\n{script}</script></body></html>\n"
        )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if abs(value) < 10**DIGITS else value


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
        _tile(f"{100 * newest[key]:.1f} %" if key in SHARES else f"{newest[key]:.4g}", label)
        for key, label in TILES.items()
        if key in newest
    ]
    best = data.read_best(run)
    if best:
        tiles.append(_tile(f"step {best['step']:,}", f"best by {best.get('metric')}: {best.get('value'):.4g}"))
    return (
        f"<h1>{html.escape(run.parent.name)} / {html.escape(run.name)}</h1>"
        f'<p class="quiet">{how_far}, {state}. Page written {_when(time.time())}.</p>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{html.escape(value)}</b><span class="quiet">{html.escape(label)}</span></div>'


def _when(unix_time: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time)) if unix_time else "at an unknown time"


def _warnings(sentences: list[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="warnings">{items}</ul>' if items else ""


_CONTROLS = (
    '<div class="controls"><label><input type="checkbox" id="log"> logarithmic</label>'
    '<label>smoothing <input type="range" id="smoothing" min="0" max="0.98" step="0.02" value="0"></label>'
    '<span class="quiet">A name below a chart hides its curve.</span></div>'
)


def _curves(page: _Page, charts: list[Chart]) -> Iterable[str]:
    """Yields a section for each kind of metric that the run has."""
    for section in data.SECTIONS:
        figures = [page.figure(chart, is_metric=True) for chart in charts if chart.section == section]
        if figures:
            yield f'<h2>{section}</h2><div class="charts">{"".join(figures)}</div>'


def _chunks(page: _Page, run: pathlib.Path) -> Iterable[str]:
    """Yields the sampled actions of the newest validation, a sample at a time."""
    steps = data.validation_steps(run)
    if not steps:
        return
    yield (
        f"<h2>Sampled actions after step {steps[-1]:,}</h2><p class='quiet'>Held-out observations: the chunk that was "
        "demonstrated, and dashed what the model makes of the same observation, in the fields' units.</p>"
    )
    for i, chunk in enumerate(data.read_chunks(run, steps[-1])):
        figures = "".join(page.figure(chart, is_metric=False) for chart in data.chunk_charts(chunk))
        yield (
            f"<details{' open' if i < OPEN_CHUNKS else ''}><summary>{html.escape(chunk.prompt)} "
            f'<span class="quiet">{html.escape(chunk.place)}</span></summary><div class="chunk">{_frame(chunk)}'
            f'<div class="charts">{figures}</div></div></details>'
        )


def _frame(chunk: Chunk) -> str:
    if chunk.image is None:
        return ""
    return f'<img src="{_data_address(chunk.image)}" alt="what the model saw: {html.escape(chunk.place)}">'


def _data_address(image: np.ndarray) -> str:
    """Returns an image of [height, width, 3] uint8 as an address that holds it."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


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
