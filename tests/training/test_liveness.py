"""Processes of a run that miss each other, as threads of one: they only know their connections."""

import contextlib
import queue
import socket
import threading
import time

import pytest

from openpi_b1k.training import liveness
from openpi_b1k.training.liveness import Listener, Liveness, connect

TIMEOUT_S = 30.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(liveness, "BEAT_S", 0.05)
    monkeypatch.setattr(liveness, "GRACE_S", 0.2)
    monkeypatch.setattr(liveness, "LINGER_S", 0.2)


class Run:
    """Three processes, each with a queue of the reasons it ended for."""

    def __init__(self, stack, timeout_s=TIMEOUT_S):
        others = [socket.socketpair() for _ in range(2)]
        self.reasons = [queue.Queue() for _ in range(3)]
        links = [[(ours, i + 1, f"host{i + 1}") for i, (ours, _) in enumerate(others)]]
        links += [[(theirs, 0, "host0")] for _, theirs in others]
        self.sockets = [[link[0] for link in own] for own in links]
        for own in [*others[0], *others[1]]:
            own.settimeout(1)
            stack.callback(own.close)
        self.processes = [Liveness(i, 3, timeout_s, own, self.reasons[i].put) for i, own in enumerate(links)]

    def reason(self, process):
        return self.reasons[process].get(timeout=5)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("victim", [0, 2])
def test_all_learn_of_a_process_that_dies(stack, victim):
    run = Run(stack)
    for own in run.sockets[victim]:
        own.shutdown(socket.SHUT_RDWR)  # what the system does when a process is killed
    for other in {0, 1, 2} - {victim}:
        assert run.reason(other) == (
            f"process {victim} of 3 (host{victim}) was lost: it has ended without a word, see its log; go on from the "
            "last checkpoint with --resume"
        )


def test_all_learn_of_a_process_that_is_silent(stack, monkeypatch):
    run = Run(stack, timeout_s=0.5)
    time.sleep(1)
    assert all(reasons.empty() for reasons in run.reasons)  # heartbeats do
    monkeypatch.setattr(run.processes[1], "_tell", lambda *message: None)  # as a stopped process
    for other in (0, 2):
        assert "process 1 of 3 (host1) was lost: it has not been heard of for" in run.reason(other)


@pytest.mark.parametrize("failing", [0, 1])
def test_all_learn_of_a_process_that_fails_after_a_moment_of_their_own(stack, failing):
    run = Run(stack)
    since = time.monotonic()
    threading.Thread(target=run.processes[failing].fail, args=("has failed",)).start()
    for other in {0, 1, 2} - {failing}:
        assert run.reason(other).startswith(f"process {failing} of 3 ({socket.gethostname()}) has failed; ")
        assert time.monotonic() - since >= 0.2
    assert run.reasons[failing].empty()


def test_nobody_misses_a_process_that_takes_leave(stack):
    run = Run(stack)
    for process in run.processes:
        process.close()
        time.sleep(0.3)
    assert all(reasons.empty() for reasons in run.reasons)


def test_who_knows_the_token_is_let_in_and_nobody_else():
    listener, found = Listener(), []
    thread = threading.Thread(target=lambda: found.extend(listener.accept(1, "secret")))
    thread.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as stranger:
        stranger.sendall(b'["guess", 1, "host"]\n')
        assert stranger.recv(10) == b""
    link = connect([("127.0.0.1", 1), ("127.0.0.1", listener.port)], 1, "secret")
    thread.join()
    ((theirs, process, host),) = found
    assert (process, host) == (1, socket.gethostname())
    assert link[1:] == (0, socket.gethostname())
    theirs.close()
    link[0].close()


def test_an_address_where_nobody_listens_is_no_process():
    assert connect([("127.0.0.1", 1)], 1, "secret") is None


def test_who_does_not_come_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(liveness, "CONNECT_S", 0.1)
    assert Listener().accept(1, "secret") == []
