import logging
import subprocess
import sys
import threading

import pytest

from openpi_b1k.training import watchdog
from openpi_b1k.training.watchdog import LOST_STATUS, Watchdog, stacks_path


class Watched:
    """A watchdog with a clock that stands until it is set, which writes down why it would have ended the process."""

    def __init__(self, directory):
        self.now, self.endings = 0.0, []
        self.watchdog = Watchdog(directory, 1000.0, 1, clock=lambda: self.now, end=self.endings.append)
        self.stacks = stacks_path(directory, 1)

    def steps(self, count, seconds):
        for step in range(1, count + 1):
            self.now += seconds
            self.watchdog.beat(step)

    def after(self, seconds):
        self.now += seconds
        self.watchdog.check()


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_no_step_for_too_long_ends_the_process_and_says_where_it_hung(watched, tmp_path):
    watched.steps(3, 1.0)
    watched.after(1000.0)
    assert watched.endings == []
    watched.after(1.0)
    (message,) = watched.endings
    assert message.startswith("no step was finished for 1001 s after step 3 on process 1 (")
    assert "longer than --hang-timeout-s 1000; " in message
    assert f"{tmp_path}/stacks-1.txt says what its threads were doing" in message
    assert "test_no_step_for_too_long" in watched.stacks.read_text()


def test_the_time_before_the_first_step_counts_too(watched):
    watched.after(1001.0)
    assert "before the first step on process 1" in watched.endings[0]


@pytest.mark.parametrize(("duration", "limit"), [(2.0, 40.0), (0.01, 10.0)])
def test_a_step_of_twenty_medians_is_logged_once(watched, caplog, duration, limit):
    watched.steps(10, duration)
    with caplog.at_level(logging.WARNING):
        watched.after(limit)
        assert caplog.records == []
        watched.after(0.5)
        watched.after(0.5)
        (record,) = caplog.records
        assert "the step after step 10 on process 1 (" in record.message
        assert f"has taken {limit + 0.5:.1f} s" in record.message
        assert "test_a_step_of_twenty_medians" in record.message
        assert watched.stacks.read_text().count("# ") == 1
        watched.watchdog.beat(11)
        watched.after(limit + 0.5)
        assert len(caplog.records) == 2
    assert watched.endings == []


def test_few_steps_have_no_median(watched, caplog):
    watched.steps(5, 1.0)  # four that were begun by another
    watched.after(999.0)
    assert caplog.records == []
    assert not watched.stacks.exists()


def test_pauses_count_neither_for_hanging_nor_for_the_median(watched, caplog):
    watched.steps(3, 1.0)
    for step in range(4, 12):
        with watched.watchdog.pause():
            watched.after(5000.0)
        watched.now += 1.0
        watched.watchdog.beat(step)
    assert (watched.endings, caplog.records) == ([], [])
    with watched.watchdog.pause():
        watched.after(500.0)
    watched.after(20.0)
    assert caplog.records == []
    watched.after(1.0)
    assert "has taken 21.0 s" in caplog.text


def test_pauses_do_not_nest(watched):
    with watched.watchdog.pause(), pytest.raises(RuntimeError, match="paused already"), watched.watchdog.pause():
        pass


def test_stacks_that_cannot_be_written_are_logged_all_the_same(tmp_path, caplog):
    watched = Watched(tmp_path / "missing")
    watched.after(1001.0)
    assert len(watched.endings) == 1
    assert "the stacks could not be written to" in caplog.text


def test_the_thread_looks_by_itself_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    ended = threading.Event()
    with Watchdog(tmp_path, 0.1, end=lambda message: ended.set()):
        assert ended.wait(10)
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_a_process_that_hangs_is_ended_whatever_it_waits_for(tmp_path):
    code = (
        "import atexit, pathlib, sys, threading, time\n"
        "from openpi_b1k.training.watchdog import Watchdog\n"
        "atexit.register(time.sleep, 1000)\n"
        "def waits_for_ever():\n"
        "    threading.Event().wait()\n"
        "with Watchdog(pathlib.Path(sys.argv[1]), 0.5) as watchdog:\n"
        "    watchdog.beat(7)\n"
        "    waits_for_ever()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == LOST_STATUS == 75
    assert "waits_for_ever" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: no step was finished for ")
    assert "after step 7" in ended.stderr.splitlines()[-1]
    assert "waits_for_ever" in (tmp_path / "stacks-0.txt").read_text()
