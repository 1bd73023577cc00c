"""An audit as one HTML file that needs nothing else: findings, plots and frames."""

import base64
import html
import io

import numpy as np
from matplotlib.figure import Figure

from openpi_b1k.curation.audit import Report, entry_names
from openpi_b1k.curation.audit_rows import limits_in_use
from openpi_b1k.curation.findings import KINDS, grouped
from openpi_b1k.robots.r1pro import ACTION_LIMITS

MOST_LISTED = 50
STYLE = """
body { font: 14px/1.4 sans-serif; max-width: 1100px; margin: 2em auto; color: #222 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: 3px 8px; border-bottom: 1px solid #ddd }
.error { color: #b00020 } .warning { color: #b06000 } .note { color: #555 }
figure { display: inline-block; margin: 6px; width: 140px; vertical-align: top; font-size: 11px }
figcaption { overflow-wrap: anywhere }
"""


def page(report: Report) -> str:
    """Returns the HTML of a report."""
    about = "".join(
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in report.about.items()
    )
    plots = [_limits(report, group) for group in report.statistics] + [_lengths(report)]
    images = "".join(f'<p><img src="data:image/png;base64,{plot}" width="1000"></p>' for plot in plots)
    frames = "".join(
        f'<figure><img src="data:image/jpeg;base64,{example["jpeg"]}"><figcaption>{html.escape(example["caption"])}'
        "</figcaption></figure>"
        for example in report.examples
    )
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>Audit</title><style>{STYLE}</style></head><body>'
        f"<h1>Audit of {html.escape(report.about['root'])}</h1><table>{about}</table>"
        f"<h2>Findings</h2>{_findings(report)}<h2>Values, lengths and idle ends</h2>{images}<h2>Frames</h2>{frames}"
        "</body></html>"
    )


def _findings(report: Report) -> str:
    if not report.findings:
        return "<p>Nothing found.</p>"
    parts = []
    for kind, group in grouped(report.findings).items():
        severity, meaning = KINDS[kind]
        listed = "".join(f"<li>{html.escape(finding.text)}</li>" for finding in group[:MOST_LISTED])
        more = f"<li>and {len(group) - MOST_LISTED} more: see the JSON</li>" if len(group) > MOST_LISTED else ""
        parts.append(
            f'<details><summary class="{severity}"><b>{severity}: {kind}</b> ({len(group)}): {html.escape(meaning)}'
            f"</summary><ul>{listed}{more}</ul></details>"
        )
    return "".join(parts)


def _limits(report: Report, group: str) -> str:
    """Returns a plot of every entry's range and mean +- standard deviation, within its limits where it has any."""
    values = report.statistics[group]
    count = values["count"]
    mean = np.array(values["sum"]) / count
    std = np.sqrt(np.maximum(np.array(values["squares"]) / count - mean**2, 0))
    limits = np.array(ACTION_LIMITS) if group == "action" else limits_in_use()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(mean))
    is_limited = np.isfinite(limits).all(axis=1)
    axes.bar(
        places[is_limited],
        np.ptp(limits[is_limited], axis=1),
        0.8,
        limits[is_limited, 0],
        color="#e4ecf7",
        label="limits",
    )
    axes.vlines(places, values["min"], values["max"], color="#888", label="range")
    axes.errorbar(places, mean, std, fmt="o", ms=3, color="#1f5fa8", label="mean, standard deviation")
    axes.set_xticks(places, [name.partition(".")[2] for name in entry_names(group)], rotation=90, fontsize=7)
    axes.set_title(f"{group}: {count} rows", fontsize=9)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _lengths(report: Report) -> str:
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    fps = report.about["fps"]
    left.hist([frames / fps for _, frames in report.lengths], bins=40, color="#1f5fa8")
    left.set_title("length of episodes, s", fontsize=9)
    right.hist(
        [[start / fps for _, start, _ in report.idle], [end / fps for _, _, end in report.idle]],
        bins=40,
        label=["start", "end"],
        color=["#1f5fa8", "#d98c2b"],
    )
    right.set_title("idle at the ends, s", fontsize=9)
    right.legend(fontsize=7)
    return _png(figure)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
