"""What a server remembers: of each connection, of each of its environments, and for a while of closed connections.

A client whose connection broke connects again and sends its last observation once more. Whether the first request of a
new connection is a closed one's last, byte for byte, is told by a hash; then the new connection takes the session over
and gets the reply that was lost, so that no action is executed twice or left out.
"""

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable

import numpy as np

from openpi_b1k.serving.batching import Chunk
from openpi_b1k.serving.executor import Executor, Moment

KEEP_S = 60.0
"""How long a closed connection's session can be taken over."""
MAX_KEPT = 256
"""Closed connections' sessions kept at once; beyond, the oldest go."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pending:
    """A chunk that is computed while its environment goes on."""

    observed: Moment
    """When the observation was made that it answers."""
    chunk: asyncio.Future[Chunk]


@dataclasses.dataclass(eq=False)
class Slot:
    """One environment: what it executes, and where its episode stands."""

    executor: Executor
    task: str | None = None
    num_steps: int = 0
    """Actions handed out since the episode's start."""
    pending: Pending | None = None

    def adopt(self) -> Chunk | None:
        """Has the environment go on with the chunk that was computed meanwhile, if it is there, and returns that.

        Raises:
            Exception: whatever its model call failed with.
        """
        if self.pending is None or not self.pending.chunk.done():
            return None
        pending, self.pending = self.pending, None
        chunk = pending.chunk.result()
        self.executor.accept(chunk.actions, pending.observed)
        return chunk

    def take(self, num_actions: int) -> np.ndarray:
        """Returns the next actions, float32 [n, a], and counts them as executed."""
        self.num_steps += num_actions
        return np.stack([self.executor.next_action() for _ in range(num_actions)])


@dataclasses.dataclass(eq=False)
class Session:
    """One connection's environments, its last request and the reply to it."""

    owner: object
    """The connection; None after it has closed."""
    slots: list[Slot] = dataclasses.field(default_factory=list)
    can_replay: bool = True
    """Whether chunks of the size the client asks for can be had; found out at the first one."""
    can_be_kept: bool = True
    """Whether another connection may take it over: not after an error."""
    last_request: bytes = b""
    """Kept while the connection is open: hashing every request would cost more."""
    last_reply: bytes | None = None
    """None while it is being computed."""
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    """Held while a request is answered."""

    def reset(self) -> None:
        """Begins new episodes in all environments, whose number may be another from now on."""
        self.slots, self.can_replay = [], True
        self.last_request, self.last_reply = b"", None


@dataclasses.dataclass(frozen=True)
class _Kept:
    since: float
    digest: asyncio.Task[bytes]


class Sessions:
    """All sessions of a server. Belongs to its event loop."""

    def __init__(self, keep_s: float = KEEP_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without any.

        Args:
            keep_s: how long a closed connection's session can be taken over.
            clock: seconds.
        """
        self._keep_s, self._clock = keep_s, clock
        self._num_open = 0
        self._kept: dict[Session, _Kept] = {}

    @property
    def num_open(self) -> int:
        """Connections that are open."""
        return self._num_open

    @property
    def num_kept(self) -> int:
        """Closed connections' sessions that can still be taken over."""
        self._forget_old()
        return len(self._kept)

    def open(self, owner: object) -> Session:
        """Returns the session of a new connection."""
        self._num_open += 1
        return Session(owner)

    def close(self, session: Session) -> None:
        """Ends a session's connection. It may still be answering; its reply then is for who takes it over."""
        self._num_open -= 1
        session.owner = None
        if session.can_be_kept and session.last_request:
            digest = asyncio.create_task(asyncio.to_thread(_digest, session.last_request))
            self._kept[session] = _Kept(self._clock(), digest)
        session.last_request = b""
        self._forget_old()

    async def taken_over(self, request: bytes, fresh: Session) -> Session | None:
        """Returns the session whose last request this is, with its reply, for a connection that has a fresh one.

        None if there is no such session of a closed connection, or the newcomer is gone itself by then: the session
        stays for who comes next.
        """
        self._forget_old()
        if not self._kept:
            return None
        digest = await asyncio.to_thread(_digest, request)
        for session, kept in list(self._kept.items()):
            if await kept.digest != digest:
                continue
            async with session.lock:  # its reply may still be on the way
                if fresh.owner is None:
                    return None
                if session in self._kept and session.can_be_kept and session.last_reply is not None:
                    del self._kept[session]
                    session.owner, session.last_request = fresh.owner, request
                    return session
        return None

    def _forget_old(self) -> None:
        now = self._clock()
        for i, (session, kept) in enumerate(reversed(list(self._kept.items()))):
            if now - kept.since > self._keep_s or i >= MAX_KEPT:
                del self._kept[session]


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
