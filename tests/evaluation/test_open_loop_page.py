import json
import re

import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.evaluation.open_loop import measuring
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.result import METHODS
from openpi_b1k.evaluation.open_loop_command import OpenLoop
from openpi_b1k.robots.r1pro import ACTION
from scripts import evaluate as script
from tests import sample_cases
from tests.evaluation.pages import BROWSER, Elements, data_of, drawn_by_browser

NUM = sample_cases.NUM_EPISODES


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


@pytest.fixture(scope="module")
def written(sample_checkpoint, tmp_path_factory):
    """Returns a folder with what the command wrote about the sample checkpoint, and what it printed as `text`."""
    folder = tmp_path_factory.mktemp("open_loop") / "new"
    command = OpenLoop(
        sample_checkpoint, frames=6, batch_size=NUM, json=folder / "result.json", html=folder / "page.html"
    )
    (folder / "text").write_text(command.run())
    return folder


def test_the_command_prints_and_writes_the_same_numbers(written, sample_checkpoint):
    text, stored = (written / "text").read_text(), json.loads((written / "result.json").read_text())
    assert sorted(path.name for path in written.iterdir()) == ["page.html", "result.json", "text"]
    assert f"written: {written / 'page.html'}" in text
    assert stored["checkpoint"] == str(sample_checkpoint)
    assert (stored["frames"], stored["episodes"], stored["split"]) == (6, 4, "held-out")
    info = contents.read_info(sample_checkpoint)
    assert stored["completed_steps"] == info.completed_steps == 1
    for name in ACTION.names:
        (row,) = re.findall(rf"^  {name} .*%.*$", text, flags=re.MULTILINE)
        for method in METHODS:
            assert f"{stored['fields'][name]['error'][method]:.3g}" in row
    assert stored["fields"]["right_arm"]["error"]["policy"] > 0.01  # one step has taught it nothing


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(written, sample_checkpoint):
    def result(seed):
        sampling = measuring.Sampling(seed, NUM)
        return json.loads(measuring.evaluate(sample_checkpoint, DataChoice(), 6, sampling).result.to_json())

    stored = json.loads((written / "result.json").read_text())
    assert result(0) == stored
    other = result(1)
    assert other["fields"]["right_arm"]["error"]["policy"] != stored["fields"]["right_arm"]["error"]["policy"]
    assert other["fields"]["right_arm"]["error"]["repeat last"] == stored["fields"]["right_arm"]["error"]["repeat last"]


def test_the_page_holds_all_and_needs_nothing_from_elsewhere(written):
    page, stored = (written / "page.html").read_text(), json.loads((written / "result.json").read_text())
    elements = Elements(page)
    for _, attributes in elements.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    for title in ("Error over the chunk", "Mean error by field", "by task", "by skill", "Episodes from end to end"):
        assert title in page
    charts = data_of(page)
    horizons = charts[: len(ACTION.names)]
    for name, chart in zip(ACTION.names, horizons, strict=True):
        assert [one["name"] for one in chart["series"]] == list(METHODS)
        steps = stored["fields"][name]["error_by_step"]["policy"]
        points = chart["series"][0]["points"]
        assert [step for step, _ in points] == [i for i, error in enumerate(steps, start=1) if error is not None]
        assert points[0][1] == pytest.approx(steps[0], rel=1e-4)
    num_shown = len(elements.all("details"))
    assert num_shown == 4 + 6  # episodes, and frames of them: two of each at most
    assert len(charts) == len(ACTION.names) * (1 + num_shown)
    assert len(elements.all("img")) == 4 + 6  # a chunk of 25 lasts longer than these episodes, so one image of each


def test_the_script_reports_what_cannot_be_done(sample_checkpoint, capsys, tmp_path):
    assert script.run(OpenLoop(sample_checkpoint, frames=0)) == 2
    assert "error: at least one frame" in capsys.readouterr().err
    assert script.run(OpenLoop(tmp_path / "none")) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert script.run(OpenLoop(sample_checkpoint, DataChoice(root=tmp_path / "gone"))) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_real_browser_draws_every_chart_without_an_error(written, tmp_path):
    page = (written / "page.html").read_text().replace("<details>", "<details open>")
    unfolded = tmp_path / "unfolded.html"
    unfolded.write_text(page)
    drawn = drawn_by_browser(unfolded, tmp_path)
    charts = data_of(page)
    assert drawn.count("<svg") == len(charts)
    assert len(re.findall('<path class="curve ', drawn)) == sum(len(chart["series"]) for chart in charts)
    assert "NaN" not in drawn
