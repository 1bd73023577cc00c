"""scripts/train.py as a function: what it returns and prints. Nothing is trained."""

import dataclasses
import importlib.util
import pathlib
import sys

import pytest

from configs import debug
from openpi_b1k import metrics
from openpi_b1k.checkpoints.failures import CheckpointError
from openpi_b1k.data.workers import WorkerError
from openpi_b1k.training import loop, start
from openpi_b1k.training.stopping import InterruptedTraining
from openpi_b1k.training.window import NonFiniteLossError

PATH = pathlib.Path(__file__).parents[2] / "scripts" / "train.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_script", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    monkeypatch.setattr(metrics, "setup_logging", lambda *, is_main: None)  # pytest has its own
    return module


def replace_training(monkeypatch, outcome):
    """Makes training end at once, with a checkpoint or an error."""

    def train(training):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(start, "start", lambda config: None)
    monkeypatch.setattr(loop, "train", train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "error: --batch-size 6 must be a multiple of the 4 devices; nearest: 4\n"),
        ({"fsdp": 3}, "error: --fsdp 3 does not divide the 4 devices; choose one of [1, 2, 4]\n"),
        ({"resume": True, "exp_name": "radio"}, "to resume; runs there: none\n"),
        ({"weights": "/nowhere"}, "error: nothing at /nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_two(script, small_config, capsys, changes, message):
    assert script.run(dataclasses.replace(small_config, **changes)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        (NonFiniteLossError("10 updates were skipped", 3, (), {}), (1, "error: 10 updates were skipped\n")),
        (CheckpointError("checkpoint 3 could not be written"), (1, "error: checkpoint 3 could not be written\n")),
        (WorkerError("a worker was killed"), (1, "error: a worker was killed\n")),
        (ConnectionError("wandb refuses"), (1, "error: wandb refuses\n")),
        (InterruptedTraining("stopped after 3 of 9 steps", 15), (143, "stopped after 3 of 9 steps\n")),
    ],
)
def test_a_run_that_ends_early_says_why(script, monkeypatch, capsys, outcome, ending):
    replace_training(monkeypatch, outcome)
    assert (script.run(debug.CONFIG), capsys.readouterr().err) == ending


def test_a_bug_keeps_its_traceback(script, monkeypatch):
    replace_training(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        script.run(debug.CONFIG)


def test_rollouts_are_played_on_the_last_checkpoint_and_are_the_last_line(script, small_config, monkeypatch, capsys):
    from openpi_b1k.evaluation.closed_loop import sample_world
    from openpi_b1k.sample import demos

    class Result:
        def summary(self):
            return "closed-loop success 0.96 (48 of 50)"

    asked = []
    replace_training(monkeypatch, pathlib.Path("checkpoints/debug/run/6"))
    monkeypatch.setattr(demos, "ensure", lambda config: asked.append("demos") or config)
    monkeypatch.setattr(sample_world, "evaluate", lambda path, **options: asked.append((path, options)) or Result())
    data = dataclasses.replace(small_config.data, source="sample", sample_demos=4)
    assert script.run(dataclasses.replace(small_config, data=data, rollouts=50, seed=3)) == 0
    assert asked == ["demos", (pathlib.Path("checkpoints/debug/run/6"), {"episodes": 50, "seed": 3})]
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint: checkpoints/debug/run/6",
        "closed-loop success 0.96 (48 of 50)",
    ]
