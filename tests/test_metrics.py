import json
import logging
import subprocess
import sys

import pytest

from openpi_b1k import metrics


def open_lines(tmp_path, *, completed_steps=0, is_main=True):
    return metrics.open_writers(tmp_path / "run", {"wandb": "off"}, is_main=is_main, completed_steps=completed_steps)


def read_lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_before_the_next(tmp_path):
    writers = open_lines(tmp_path)
    writers.write(5, {"loss": 0.1234567890123456})
    assert read_lines(tmp_path) == [{"step": 5, "loss": 0.1234567890123456}]
    writers.write(10, {"loss": 0.1, "loss/base": 2.0})
    writers.close()
    assert read_lines(tmp_path)[1] == {"step": 10, "loss": 0.1, "loss/base": 2.0}


def test_a_resumed_run_drops_lines_past_its_checkpoint_and_a_line_cut_off(tmp_path):
    writers = open_lines(tmp_path)
    for step in (5, 10, 15):
        writers.write(step, {"loss": step / 10})
    writers.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    writers = open_lines(tmp_path, completed_steps=10)
    writers.write(15, {"loss": 9.0})
    writers.close()
    assert read_lines(tmp_path) == [{"step": 5, "loss": 0.5}, {"step": 10, "loss": 1.0}, {"step": 15, "loss": 9.0}]


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    writers = open_lines(tmp_path, is_main=False)
    writers.write(5, {"loss": 1.0})
    writers.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_asked_with_the_id_of_the_run_and_keeps_it_when_resumed(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    class FakeWandb:
        @staticmethod
        def init(**options):
            calls.append(options)
            return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    directory = tmp_path / "recipe" / "run"
    config = {"seed": 1, "wandb": "offline", "wandb_project": "p"}
    for _ in range(2):
        writers = metrics.open_writers(directory, config, is_main=True, completed_steps=0)
        writers.write(3, {"loss": 2.0})
        writers.close()
    ids = [call["id"] for call in calls if isinstance(call, dict)]
    assert ids[0] == ids[1]
    assert calls[0] == {
        "project": "p", "name": "recipe/run", "id": ids[0], "resume": "allow", "mode": "offline",
        "dir": str(directory), "config": config,
    }  # fmt: skip
    assert calls[1:3] == [(3, {"loss": 2.0}), "finish"]


@pytest.mark.parametrize(("is_main", "level"), [(True, logging.INFO), (False, logging.WARNING)])
def test_only_the_main_process_speaks(is_main, level):
    code = (
        "import logging, sys; from openpi_b1k import metrics; "
        f"metrics.setup_logging(is_main={is_main}); logging.getLogger('openpi_b1k.x').info('hello'); "
        "logging.getLogger('absl').info('noise'); logging.getLogger('openpi_b1k.x').warning('careful'); "
        f"assert logging.getLogger().level == {level}; "
        "assert not {'jax', 'torch', 'wandb'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("hello" in shown.stderr) == is_main
    assert "careful" in shown.stderr
    assert "noise" not in shown.stderr
    assert shown.stdout == ""


def test_the_bar_asks_for_values_only_when_those_shown_are_old():
    bar = metrics.ProgressBar(10, completed_steps=4, is_main=True)
    asked = []
    for _ in range(5):
        bar.advance(lambda: asked.append(1) or {"loss": 1.0})
    assert len(asked) == 1
    bar.show({"loss": 0.25, "learning_rate": 1e-4, "samples_per_s": 12.0, "data_wait": 0.5, "grad_norm": 1.0})
    assert bar._bar.postfix == "loss=0.25, lr=0.0001, samples/s=12, data wait=0.5"  # noqa: SLF001
    bar.close()
    silent = metrics.ProgressBar(10, completed_steps=0, is_main=False)
    silent.advance(lambda: pytest.fail("a silent bar must not fetch values"))
    silent.close()
