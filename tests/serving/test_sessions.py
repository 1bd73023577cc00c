import asyncio

import numpy as np

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving import sessions as module
from openpi_b1k.serving.chunking import make_executor
from openpi_b1k.serving.sessions import Sessions, Slot


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def closed(sessions, request, reply=b"reply"):
    """Returns a session whose connection has asked, been answered and closed."""
    session = sessions.open("old")
    session.last_request, session.last_reply = request, reply
    sessions.close(session)
    return session


def take(sessions, request):
    fresh = sessions.open("new")
    return sessions.taken_over(request, fresh)


def test_an_equal_request_takes_a_closed_session_over_once():
    async def scenario():
        sessions = Sessions()
        session = closed(sessions, b"request")
        assert session.last_request == b""  # only its hash is kept
        assert await take(sessions, b"another") is None
        assert await take(sessions, b"request") is session
        assert (session.owner, session.last_request, session.last_reply) == ("new", b"request", b"reply")
        assert await take(sessions, b"request") is None

    asyncio.run(scenario())


def test_it_is_kept_for_sixty_seconds():
    async def scenario():
        clock = Clock()
        sessions = Sessions(clock=clock)
        first = closed(sessions, b"first")
        clock.now = 59.0
        closed(sessions, b"second")
        clock.now = 60.0
        assert sessions.num_kept == 2
        assert await take(sessions, b"first") is first
        clock.now = 119.5
        assert sessions.num_kept == 0
        assert await take(sessions, b"second") is None

    asyncio.run(scenario())


def test_sessions_that_failed_or_never_asked_are_not_kept():
    async def scenario():
        sessions = Sessions()
        failed = sessions.open("old")
        failed.last_request, failed.can_be_kept = b"request", False
        sessions.close(failed)
        sessions.close(sessions.open("old"))
        assert (sessions.num_kept, sessions.num_open) == (0, 0)

    asyncio.run(scenario())


def test_a_reset_leaves_nothing_to_take_over():
    async def scenario():
        sessions = Sessions()
        session = sessions.open("old")
        session.last_request, session.last_reply = b"request", b"reply"
        session.reset()
        sessions.close(session)
        assert sessions.num_kept == 0

    asyncio.run(scenario())


def test_the_newcomer_waits_for_the_reply_that_is_being_computed():
    async def scenario():
        sessions = Sessions()
        session = sessions.open("old")
        async with session.lock:
            session.last_request = b"request"
            sessions.close(session)
            taking = asyncio.create_task(take(sessions, b"request"))
            while not session.lock._waiters:  # noqa: SLF001 - how far it has come
                await asyncio.sleep(0)
            assert not taking.done()
            session.last_reply = b"reply"
        assert await taking is session

    asyncio.run(scenario())


def test_of_two_newcomers_that_wait_for_a_reply_one_gets_the_session():
    async def scenario():
        sessions = Sessions()
        session = sessions.open("old")
        async with session.lock:
            session.last_request = b"request"
            sessions.close(session)
            taking = [asyncio.create_task(take(sessions, b"request")) for _ in range(2)]
            while len(session.lock._waiters or ()) < 2:  # noqa: SLF001 - how far they have come
                await asyncio.sleep(0)
            session.last_reply = b"reply"
        assert sorted(await asyncio.gather(*taking), key=repr) == sorted([session, None], key=repr)

    asyncio.run(scenario())


def test_a_newcomer_that_is_gone_meanwhile_leaves_the_session_to_the_next():
    async def scenario():
        sessions = Sessions()
        session = sessions.open("old")
        async with session.lock:
            session.last_request = b"request"
            sessions.close(session)
            gone = sessions.open("gone")
            taking = asyncio.create_task(sessions.taken_over(b"request", gone))
            while not session.lock._waiters:  # noqa: SLF001 - how far it has come
                await asyncio.sleep(0)
            sessions.close(gone)
            session.last_reply = b"reply"
        assert await taking is None
        assert sessions.num_kept == 1
        assert await take(sessions, b"request") is session

    asyncio.run(scenario())


def test_a_request_that_failed_meanwhile_is_not_taken_over():
    async def scenario():
        sessions = Sessions()
        closed(sessions, b"request", reply=None)
        assert await take(sessions, b"request") is None

    asyncio.run(scenario())


def test_only_the_newest_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", 2)

    async def scenario():
        sessions = Sessions()
        kept = [closed(sessions, bytes([i])) for i in range(3)]
        assert sessions.num_kept == 2
        assert await take(sessions, bytes([0])) is None
        assert await take(sessions, bytes([1])) is kept[1]

    asyncio.run(scenario())


def test_a_slot_counts_what_it_hands_out():
    slot = Slot(make_executor(ExecutionConfig(), ACTION, 4))
    slot.executor.accept(np.arange(4, dtype=np.float32)[:, None] * np.ones(ACTION.size, np.float32))
    np.testing.assert_array_equal(slot.take(3)[:, 0], [0, 1, 2])
    assert slot.num_steps == 3
