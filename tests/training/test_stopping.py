import os
import signal
import threading

import pytest

from openpi_b1k.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_is_the_old_one(number):
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    with StopRequest() as stop:
        assert not stop.is_agreed(is_sync_point=True)
        os.kill(os.getpid(), number)
        assert stop.is_agreed(is_sync_point=False)
        assert stop.signal_number == number
        assert signal.getsignal(number) == before[number]
    assert {kind: signal.getsignal(kind) for kind in before} == before


def test_elsewhere_than_in_the_main_thread_no_handler_is_set():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def use():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.is_agreed(is_sync_point=True)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
