import os
import signal
import threading

import pytest

from openpi_b1k.training import stopping
from openpi_b1k.training.stopping import StopRequest


@pytest.fixture
def received():
    """Returns the signals that reach the handlers under those of a StopRequest."""
    seen = []
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in stopping.SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_later_one_is_the_old_one(number, received, monkeypatch):
    before = {kind: signal.getsignal(kind) for kind in stopping.SIGNALS}
    with StopRequest() as stop:
        assert not stop.is_agreed(1)
        os.kill(os.getpid(), number)
        assert stop.is_agreed(2)
        assert stop.signal_number == number
        assert received == []
        monkeypatch.setattr(stopping, "SAME_REQUEST_S", 0.0)
        os.kill(os.getpid(), number)
        assert received == [number]
        assert signal.getsignal(number) == before[number]
    assert {kind: signal.getsignal(kind) for kind in before} == before


def test_the_same_request_twice_is_one(received):
    """`uv run` passes on to its child what the system has sent to both."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_agreed(1)
        assert received == []


def test_elsewhere_than_in_the_main_thread_no_handler_is_set():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def use():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.is_agreed(1)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
