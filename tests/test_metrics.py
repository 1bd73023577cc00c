import io
import json
import logging
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from openpi_b1k import metrics

CONFIG = {"wandb": "off", "tensorboard": False}


def open_lines(tmp_path, *, completed_steps=0, is_main=True):
    return metrics.open_writers(tmp_path / "run", CONFIG, is_main=is_main, completed_steps=completed_steps)


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


def events(directory):
    """Returns the (step, tag, value) of every scalar and image in a run's event files, oldest file first."""
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        content = memoryview(path.read_bytes())
        while content:  # a record: its length, a checksum of that, the event, a checksum of the event
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(bytes(content[12 : 12 + size]))
            content = content[16 + size :]
            for value in event.summary.value:
                image = Image.open(io.BytesIO(value.image.encoded_image_string)) if value.HasField("image") else None
                found.append((event.step, value.tag, np.asarray(image) if image else value.simple_value))
            if event.session_log.status == event_pb2.SessionLog.START:
                found.append((event.step, "purged from here", None))
    return found


@pytest.fixture
def picture(tmp_path):
    """Returns the path of a small PNG file."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)).save(path)
    return path


def test_tensorboard_gets_the_same_numbers_and_forgets_what_a_resumed_run_does_again(tmp_path, picture):
    directory = tmp_path / "run"
    config = CONFIG | {"tensorboard": True}
    writers = metrics.open_writers(directory, config, is_main=True, completed_steps=0)
    for step in (5, 10):
        writers.write(step, {"loss": step / 16, "loss/base": 2.0})
    writers.write_image(5, "first_batch", picture)
    writers.close()
    before = events(directory)
    scalars = [event for event in before if event[1].startswith("loss")]
    assert scalars == [(5, "loss", 0.3125), (5, "loss/base", 2.0), (10, "loss", 0.625), (10, "loss/base", 2.0)]
    ((step, _, image),) = [event for event in before if event[1] == "first_batch"]
    assert step == 5
    np.testing.assert_array_equal(image, np.asarray(Image.open(picture)))
    assert [line["step"] for line in read_lines(tmp_path)] == [5, 10]  # pictures are files already

    writers = metrics.open_writers(directory, config, is_main=True, completed_steps=5)
    writers.write(10, {"loss": 7.0})
    writers.close()
    again = events(directory)[len(before) :]
    assert [event[:2] for event in again] == [(6, "purged from here"), (10, "loss")]


class FakeWandb:
    """What of wandb is used, writing down each call."""

    Error = type("Error", (Exception,), {})

    def __init__(self, error=None):
        self.calls = []
        self.error = error

    def __getattr__(self, name):
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(name)

        def call(*values, **options):
            self.calls.append((name, values, options))
            if self.error is not None:
                raise self.error
            return self

        return call

    def Image(self, path):  # noqa: N802 - its name
        return ("image of", path)


WANDB = CONFIG | {"seed": 1, "wandb": "offline", "wandb_project": "p"}


def test_wandb_is_asked_with_the_id_of_the_run_and_keeps_it_when_resumed(tmp_path, monkeypatch, picture):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    directory = tmp_path / "recipe" / "run"
    for _ in range(2):
        writers = metrics.open_writers(directory, WANDB, is_main=True, completed_steps=0)
        writers.write(3, {"loss": 2.0})
        writers.write_image(3, "first_batch", picture)
        writers.close()
    ids = [options["id"] for name, _, options in fake.calls if name == "init"]
    assert ids[0] == ids[1]
    expected = {
        "project": "p", "name": "recipe/run", "id": ids[0], "resume": "allow", "mode": "offline",
        "dir": str(directory), "config": WANDB,
    }  # fmt: skip
    assert fake.calls[: len(fake.calls) // 2] == [
        ("init", (), expected),
        ("define_metric", ("*",), {"step_metric": "step"}),  # so that steps made twice are no error
        ("log", ({"step": 3, "loss": 2.0},), {}),
        ("log", ({"step": 3, "first_batch": ("image of", str(picture))},), {}),
        ("finish", (), {}),
    ]


def test_wandb_without_a_login_says_what_to_do_and_leaves_no_id(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(FakeWandb.Error("No API key configured.")))
    directory = tmp_path / "recipe" / "run"
    with pytest.raises(ConnectionError, match=r"does not start: No API key .* `wandb login` .* --wandb offline"):
        metrics.open_writers(directory, WANDB | {"wandb": "online"}, is_main=True, completed_steps=0)
    assert not (directory / "wandb_id.txt").exists()


@pytest.mark.slow  # wandb starts a service process
def test_the_real_wandb_writes_a_run_without_network_twice(tmp_path):
    directory = tmp_path / "recipe" / "run"
    code = (
        "import pathlib, sys; from openpi_b1k import metrics; "
        f"w = metrics.open_writers(pathlib.Path(sys.argv[1]), {WANDB}, is_main=True, completed_steps=0); "
        "w.write(3, {'loss': 2.0}); w.close()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(directory)], check=True, env=environment)
    run_id = (directory / "wandb_id.txt").read_text()
    assert len(list((directory / "wandb").glob(f"offline-run-*-{run_id}"))) == 2


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
