"""A page of charts, tables and frames in one HTML file that needs nothing else; its script draws when it is read."""

import base64
import dataclasses
import html
import io
import json
import pathlib
from collections.abc import Iterable
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from openpi_b1k.evaluation.run_report_data import Chart, Chunk, chunk_charts

DIGITS = 5
"""Significant digits of a number in a chart."""
CONTROLS = (
    '<div class="controls"><label><input type="checkbox" id="log"> logarithmic</label>'
    '<label>smoothing <input type="range" id="smoothing" min="0" max="0.98" step="0.02" value="0"></label>'
    '<span class="quiet">A name below a chart hides its curve.</span></div>'
)
"""What sets the axes and curves of metrics; a page may do without."""


class Page:
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

    def chunk(self, chunk: Chunk, *, is_open: bool) -> str:
        """Returns a part that unfolds: what the model saw, and for each field the true and the predicted actions."""
        figures = "".join(self.figure(chart, is_metric=False) for chart in chunk_charts(chunk))
        return (
            f"<details{' open' if is_open else ''}><summary>{html.escape(chunk.prompt)} "
            f'<span class="quiet">{html.escape(chunk.place)}</span></summary><div class="chunk">{_frame(chunk)}'
            f'<div class="charts">{figures}</div></div></details>'
        )

    def write(self, path: pathlib.Path, title: str, body: Iterable[str]) -> pathlib.Path:
        """Writes the page and returns its path."""
        return write_text(path, self._document(title, body))

    def _document(self, title: str, body: Iterable[str]) -> str:
        """Returns the page's HTML."""
        here = resources.files("openpi_b1k.evaluation")
        style, script = ((here / name).read_text(encoding="utf-8") for name in ("run_report.css", "run_report.js"))
        body = "\n".join(body)  # before the charts are written out, which it may add
        charts = json.dumps(self._charts, allow_nan=False).replace("<", "\\u003c")  # or a name could end the script
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{html.escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n{body}"
            f'\n</main>\n<script type="application/json" id="charts">{charts}</script>\n'
            f"<script>\n{script}</script></body></html>\n"
        )


def write_text(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a file, whole or not at all since somebody may be reading it, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)


def tile(number: str, label: str) -> str:
    """Returns a number in large letters with what it is below."""
    return f'<div class="tile"><b>{html.escape(number)}</b><span class="quiet">{html.escape(label)}</span></div>'


def image(pixels: np.ndarray, caption: str) -> str:
    """Returns an image of [height, width, 3] uint8 that is part of the page, with a line below."""
    alternative = f"what the model saw: {html.escape(caption)}"
    return f'<div><img src="{_data_address(pixels)}" alt="{alternative}"><span>{html.escape(caption)}</span></div>'


def warnings(sentences: Iterable[str]) -> str:
    """Returns what the reader should know before the rest; nothing without sentences."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if abs(value) < 10**DIGITS else value


def _frame(chunk: Chunk) -> str:
    if chunk.image is None:
        return ""
    return f'<img src="{_data_address(chunk.image)}" alt="what the model saw: {html.escape(chunk.place)}">'


def _data_address(image: np.ndarray) -> str:
    """Returns an image of [height, width, 3] uint8 as an address that holds it."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
