"""A result as one page that needs nothing else: errors over the chunk, tables, and chunks with what the model saw."""

import html
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from openpi_b1k.evaluation.open_loop.baselines import EXPLAINED
from openpi_b1k.evaluation.open_loop.measuring import Measured
from openpi_b1k.evaluation.open_loop.replays import Replay
from openpi_b1k.evaluation.open_loop.result import METHODS, Result
from openpi_b1k.evaluation.open_loop.tables import Table, heading, tables, verdict
from openpi_b1k.evaluation.report_page import Page, image, tile, warnings
from openpi_b1k.evaluation.run_report_data import Chart, Chunk, Series
from openpi_b1k.robots.layout import Layout

OPEN_EPISODES = 1
OPEN_CHUNKS = 1
"""Of each, how many are unfolded at first."""


def write(path: pathlib.Path, measured: Measured) -> pathlib.Path:
    """Writes the page of a result and returns its path.

    Args:
        path: of the file; its directory is made.
        measured: all that came out.
    """
    page, result = Page(), measured.result
    figures = "".join(page.figure(chart, is_metric=True) for chart in horizon_charts(result))
    body = [
        "<h1>Open loop</h1>",
        f'<p class="quiet">{html.escape(heading(result))}</p>',
        warnings(result.notes),
        _tiles(result),
        f"<p>{html.escape(verdict(result))}</p>",
        f'<h2>Error over the chunk</h2><div class="charts">{figures}</div>',
        *map(_table, tables(result)),
        _baselines(),
        *_replays(page, measured.replays, result.layout),
        *_chunks(page, measured.shown),
    ]
    return page.write(path, f"Open loop: {result.facts['checkpoint']}", body)


def horizon_charts(result: Result) -> list[Chart]:
    """Returns a chart for each field: the mean error at each step of the chunk, of the policy and the baselines."""
    by_step, found = result.by_step(), []
    for f, name in enumerate(result.layout.names):
        series = []
        for m, method in enumerate(METHODS):
            errors = enumerate(by_step[m, f].tolist(), start=1)
            points = [(float(step), error) for step, error in errors if np.isfinite(error)]
            series.append(Series(method, points))
        found.append(Chart(f"{name}: {result.unit(f)}", tuple(series), x_name="step of the chunk"))
    return found


def _tiles(result: Result) -> str:
    """Returns the policy's mean errors in large letters."""
    means = result.means()
    shown = (
        tile(f"{means[0, f]:.3g}", f"{name}: {result.unit(f)}; {METHODS[best]} {means[best, f]:.3g}")
        for f, (name, best) in enumerate(zip(result.layout.names, result.best_baselines().tolist(), strict=True))
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    title = html.escape(table.title[0].upper() + table.title[1:])
    return f"<h2>{title}</h2><table><tr>{head}</tr>{rows}</table>"


def _baselines() -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{html.escape(explained)}</td></tr>" for name, explained in EXPLAINED.items()
    )
    return f"<h2>Baselines</h2><table>{rows}</table>"


def _replays(page: Page, replays: Sequence[Replay], layout: Layout) -> Iterable[str]:
    if not replays:
        return
    yield (
        "<h2>Episodes from end to end</h2><p class='quiet'>What was demonstrated, and dashed the policy's chunks along "
        "it: each starts where the demonstration is, not where the chunk before would have led. Above them the images "
        "as the model sees them.</p>"
    )
    for i, replay in enumerate(replays):
        frames = "".join(image(pixels, f"frame {frame}") for frame, pixels in replay.images)
        figures = "".join(page.figure(chart, is_metric=False) for chart in replay.charts(layout))
        yield (
            f"<details{' open' if i < OPEN_EPISODES else ''}><summary>{html.escape(replay.prompt)} "
            f'<span class="quiet">episode {replay.episode}</span></summary><div class="frames">{frames}</div>'
            f'<div class="charts">{figures}</div></details>'
        )


def _chunks(page: Page, shown: Sequence[Chunk]) -> Iterable[str]:
    yield (
        "<h2>Single chunks</h2><p class='quiet'>The chunk that was demonstrated, and dashed what the policy makes of "
        "the same observation, in the fields' units; above them the images as the model sees them.</p>"
    )
    for i, chunk in enumerate(shown):
        yield page.chunk(chunk, is_open=i < OPEN_CHUNKS)
