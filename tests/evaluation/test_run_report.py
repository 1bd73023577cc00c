import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from openpi_b1k.evaluation import run_report, run_report_data
from openpi_b1k.robots.r1pro import ACTION
from tests.evaluation.pages import BROWSER, Elements, data_of, drawn_by_browser

AH = 32


def metrics_line(step, rng):
    fall = float(np.exp(-step / 900))
    line = {"step": step, "loss": 0.05 + fall * rng.uniform(0.9, 1.1), "learning_rate": 2.5e-5, "grad_norm": 1 + fall}
    line |= {f"loss/{name}": (i + 1) * 0.02 + fall for i, name in enumerate(ACTION.names)}
    line |= {"loss/rft": 0.1 + fall, "grad_norm/vision": 0.3 + fall, "update_norm/vision": 1e-4 * (1 + fall)}
    line |= {"samples_per_s": 250.0 + rng.uniform(-5, 5), "mfu": 0.41, "data_wait": 0.01, "host_memory_gb": 21.5}
    return line | {"skipped_updates": 0, "skipped_samples": 0, "unix_time": 1.76e9 + step}


def write_run(run, num_lines=40, *, is_validated=True):
    """Writes a run's directory as training leaves it."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True)
    lines = [metrics_line(100 * (i + 1), rng) for i in range(num_lines)]
    (run / "config.json").write_text(json.dumps({"num_steps": 4000, "data": {"tasks": ["<b>radio</b>"]}, "seed": 3}))
    for step in (2000, 4000):
        (run / str(step)).mkdir()
        (run / str(step) / "checkpoint.json").write_text(json.dumps({"saved_at": 1.76e9 + step}))
    if is_validated:
        (run / "best.json").write_text(json.dumps({"step": 2000, "metric": "validation/flow_loss", "value": 0.125}))
        for line in lines[9::10]:
            fall = float(np.exp(-line["step"] / 900))
            line["validation/flow_loss"] = 0.08 + fall
            line["validation/right_gripper_accuracy"] = 1 - fall
            for name in ("base", "torso", "left_arm", "right_arm"):
                line[f"validation/{name}"] = 0.1 + fall
                line |= {f"validation/{name}/step_{k}": 0.05 + fall + 0.004 * k for k in (1, 8, 32)}
        write_chunks(run, rng)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99')
    return lines


def write_chunks(run, rng, num=4):
    (run / "validation").mkdir()
    time = np.arange(AH)[None, :, None] / AH
    true = np.sin(2 * np.pi * (time + rng.uniform(size=(num, 1, ACTION.size)))).astype(np.float32)
    mask = np.ones((num, AH), bool)
    mask[1, 20:] = False
    stored = {
        "true_actions": true,
        "predicted_actions": true + rng.normal(0, 0.08, true.shape).astype(np.float32),
        "step_mask": mask,
        "prompts": np.array(["turn on the radio", "</script><b>tidy</b>", "c", "d"][:num]),
        "episodes": np.arange(num) + 10,
        "frames": np.arange(num) * 100,
        "images": rng.integers(0, 255, (2, 28, 28, 3), dtype=np.uint8),
    }
    for step in (1000, 4000):
        np.savez(run / "validation" / f"{step}.npz", **stored)
    return stored


def test_a_page_holds_every_metric_and_needs_nothing_from_elsewhere(tmp_path):
    lines = write_run(tmp_path / "pi05_b1k" / "radio")
    path = run_report.write(tmp_path / "pi05_b1k" / "radio")
    assert path == tmp_path / "pi05_b1k" / "radio" / "report.html"
    page = path.read_text()
    elements = Elements(page)
    for _, attributes in elements.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)

    charts = {chart["title"]: {one["name"]: one for one in chart["series"]} for chart in data_of(page)}
    assert charts["Loss"]["training"]["points"][3] == [400, pytest.approx(lines[3]["loss"], rel=1e-4)]
    assert set(charts["Loss by field"]) == set(ACTION.names)
    assert set(charts["Loss by source"]) == {"rft"}
    assert set(charts["Norm of the gradients"]) == {"all", "vision"}
    assert set(charts["Mean error of sampled actions in rad"]) == {"torso", "left_arm", "right_arm"}
    assert set(charts["Gripper decisions that agree, as a share"]) == {"right_gripper"}
    steps = charts["Error of sampled actions by step of the chunk: right_arm"]
    assert set(steps) == {"step 1", "step 8", "step 32"}
    assert [x for x, _ in steps["step 8"]["points"]] == [1000, 2000, 3000, 4000]
    keys = {key for line in lines for key in line} - {"step", "unix_time"}
    metrics = [series for chart in data_of(page) if "section" in chart for series in chart["series"]]
    assert len(metrics) == len(keys)  # none twice, none left out
    assert len(elements.all("figure")) == len(data_of(page))


def test_sampled_actions_are_shown_by_field_and_without_steps_past_the_end(tmp_path):
    write_run(tmp_path / "run")
    stored = np.load(tmp_path / "run" / "validation" / "4000.npz")
    chunks = run_report_data.read_chunks(tmp_path / "run", 4000)
    assert [len(chunk.true) for chunk in chunks] == [AH, 20, AH, AH]
    assert [chunk.image is None for chunk in chunks] == [False, False, True, True]
    assert chunks[1].place == "episode 11, frame 100"
    charts = run_report_data.chunk_charts(chunks[1])
    assert [chart.title.split(":")[0] for chart in charts] == list(ACTION.names)
    arm = {series.name: series for series in charts[ACTION.names.index("right_arm")].series}
    dim = ACTION.slice("right_arm").start + 2
    assert arm["true 2"].points == [(float(k + 1), float(stored["true_actions"][1, k, dim])) for k in range(20)]
    assert arm["predicted 2"].points[19] == (20.0, float(stored["predicted_actions"][1, 19, dim]))
    assert (arm["true 2"].colour, arm["predicted 2"].colour) == (2, 2)
    assert (arm["true 2"].is_dashed, arm["predicted 2"].is_dashed) == (False, True)


def test_what_a_page_says_besides_curves(tmp_path):
    run = tmp_path / "recipe" / "run"
    write_run(run)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(run / "first_batch.png")
    page = run_report.write(run).read_text()
    assert "step 4,000 of 4,000, complete" in page
    assert "step 2,000</b>" in page
    assert "best by validation/flow_loss: 0.125" in page
    assert len(re.findall("<td>best</td>", page)) == 1
    assert "data:image/png;base64," in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "<td>data.tasks</td><td>[&quot;&lt;b&gt;radio&lt;/b&gt;&quot;]</td>" in page  # text is never markup
    assert "<b>tidy" not in page
    assert 'warnings">' not in page.replace("'", '"')


def test_a_run_that_has_just_begun(tmp_path):
    run = tmp_path / "recipe" / "run"
    write_run(run, 1, is_validated=False)
    shutil.rmtree(run / "2000")
    shutil.rmtree(run / "4000")
    (run / "config.json").unlink()
    page = run_report.write(run).read_text()
    Elements(page)
    assert "step 100, last line" in page
    assert "None is complete yet" in page
    assert "Nothing was validated" in page
    assert "Sampled actions" not in page


def test_warnings_of_what_went_wrong(tmp_path):
    lines = [metrics_line(step, np.random.default_rng(0)) for step in (1, 2, 3)]
    lines[1]["skipped_updates"], lines[2]["skipped_updates"], lines[2]["data_wait"] = 2, 1, 0.9
    lines[0]["validation/flow_loss"], lines[2]["validation/flow_loss"] = 0.1, 0.2
    (tmp_path / "nonfinite-2").mkdir()
    (tmp_path / "stacks-0.txt").touch()
    found = run_report_data.warnings(tmp_path, lines)
    assert [warning.split(" ")[0] for warning in found] == ["Skipped", "The", "nonfinite-2/", "stacks-0.txt"]
    assert found[0].startswith("Skipped updates: 3;")
    assert "was 0.1 at step 1: the run may be overfitting" in found[1]
    for line in lines:
        line["data_wait"] = 0.3
    assert "more than 30 % of the time was spent waiting" in run_report_data.warnings(tmp_path, lines)[0]


def test_values_that_are_no_numbers_are_left_out_and_long_curves_thinned():
    lines = [{"step": step, "loss": float("nan") if step == 5 else 1.0} for step in range(10_000)]
    ((series,),) = [chart.series for chart in run_report_data.charts(lines)]
    assert len(series.points) <= run_report_data.MAX_POINTS
    assert series.points[-1] == (9999, 1.0)
    assert all(y == 1.0 for _, y in series.points)


def test_a_directory_that_is_no_run_is_refused_by_the_script(tmp_path):
    script = [sys.executable, "scripts/report.py"]
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"^error: no .*metrics.jsonl; give the directory of a run", done.stderr)
    write_run(tmp_path / "run")
    done = subprocess.run([*script, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert done.stdout == f"report: {tmp_path / 'run' / 'report.html'}\n"


HANDS = """<script>setTimeout(() => {
  document.getElementById("log").click();
  const smoothing = document.getElementById("smoothing");
  smoothing.value = 0.5;
  smoothing.dispatchEvent(new Event("input"));
  for (const button of document.querySelectorAll(".legend button:first-child")) button.click();
  for (const svg of document.querySelectorAll("figure svg")) {
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: svg.getBoundingClientRect().left + 100 }));
  }
}, 1000)</script></body>"""
"""Switches the axes, smooths, hides the first curve of every chart with a legend, and points at every chart."""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("is_handled", [False, True])
def test_a_real_browser_draws_every_chart_without_an_error(tmp_path, is_handled):
    write_run(tmp_path / "run")
    page = run_report.write(tmp_path / "run").read_text().replace("<details>", "<details open>")
    unfolded = tmp_path / "unfolded.html"
    unfolded.write_text(page.replace("</body>", HANDS) if is_handled else page)
    drawn = drawn_by_browser(unfolded, tmp_path)
    charts = data_of(page)
    assert drawn.count("<svg") == len(charts)
    assert "NaN" not in drawn
    metrics = [chart for chart in charts if "section" in chart]
    if is_handled:
        assert len(re.findall('class="curve raw"', drawn)) == sum(
            len(chart["series"]) - (len(chart["series"]) > 1) for chart in metrics
        )
        assert len(re.findall(r'<div class="tip" style="left: [\d.]+px;">[^<]*step', drawn)) == len(charts)
    else:
        assert len(re.findall('<path class="curve ', drawn)) == sum(len(chart["series"]) for chart in charts)
        assert drawn.count("<figure") == len(charts)
