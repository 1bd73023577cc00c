"""The websocket server: connections in, replies out. Nothing here computes; the event loop is always free.

A connection is greeted first, then each binary frame is answered with one. What goes wrong goes wrong for that
connection alone: it gets a text frame with the reason and is closed with code 1011. `GET /healthz` answers OK.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import http
import logging
import time
from typing import Any, cast

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from openpi_b1k.serving import protocol, requests
from openpi_b1k.serving.answers import Answers
from openpi_b1k.serving.sessions import Session, Sessions

logger = logging.getLogger(__name__)

HEALTH_PATH = "/healthz"
MIB = 2**20
THREAD_BYTES = 16 * MIB
"""Longer messages are decoded in a thread; for others, about 0.1 ms for one environment's, that would take longer."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server puts up with."""

    max_connections: int = 128
    max_message_mib: int = 128
    """Of one request; 16 environments that send RGB and depth at full size send 125."""
    handshake_s: float = 10.0
    send_s: float = 60.0
    """For a client to take a reply, before its connection is dropped."""
    ping_interval_s: float = 60.0
    ping_timeout_s: float = 300.0
    """For a vanished client to be noticed; the evaluators load scenes for minutes without answering."""


class Server:
    """Serves policies on one address; belongs to the event loop it is started in."""

    def __init__(
        self,
        answers: Answers,
        sessions: Sessions,
        *,
        metadata: dict[str, Any] | None = None,
        api_key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Listens to nothing yet.

        Args:
            answers: whose policies are warm.
            sessions: the same that the batcher counts clients by.
            metadata: the greeting.
            api_key: what clients must send as `Authorization: Api-Key <key>`; None: nothing.
            limits: what to put up with.
        """
        self._answers, self._sessions = answers, sessions
        self._greeting = protocol.pack(metadata or {})
        self._api_key = api_key
        self._limits = limits or Limits()
        self._server: WebsocketServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 8000) -> int:
        """Listens from now on and returns the port, which is a free one if 0 was given.

        Raises:
            OSError: the address cannot be listened to.
        """
        limits = self._limits
        self._server = await serve(
            self._talk,
            host,
            port,
            process_request=self._admit,
            create_connection=_Connection,
            compression=None,
            max_size=limits.max_message_mib * MIB,
            max_queue=1,
            open_timeout=limits.handshake_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            server_header=None,
        )
        return next(iter(self._server.sockets)).getsockname()[1]

    async def close(self) -> None:
        """Closes all connections and stops listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answers health checks and refuses who may not in; None lets a connection in."""
        if request.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._api_key is not None:
            given = " ".join(request.headers.get_all("Authorization")).encode(errors="surrogatepass")
            if not hmac.compare_digest(given, f"Api-Key {self._api_key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
        if self._sessions.num_open >= self._limits.max_connections:
            logger.warning("refused a connection from %s: %d are open", _name(connection), self._sessions.num_open)
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        """Greets a connection and answers its requests until it ends."""
        timed = cast("_Connection", connection)  # as `create_connection` says, which the handler's type does not
        talk = _Conversation(timed, self._answers, self._sessions, self._limits)
        watcher = asyncio.create_task(connection.wait_closed())  # sees the end while a request is being answered
        watcher.add_done_callback(lambda _: self._sessions.close(talk.session))
        try:
            await talk.send(self._greeting)
            async for frame in connection:
                await talk.hear(frame)
        except ConnectionClosed as error:
            logger.info("%s is gone: %s", _name(connection), error)
        except _NotTakenError:
            logger.warning("%s did not take its reply in %g s; dropped", _name(connection), self._limits.send_s)
            connection.transport.abort()
        except Exception as error:  # noqa: BLE001 - whatever a request caused is that connection's alone
            talk.session.can_be_kept = False
            await _refuse(connection, error)
        await watcher


class _Connection(ServerConnection):
    """Knows when it last received something: a message of megabytes is unmasked and copied before it is handed on."""

    received_at = 0.0
    """Seconds, as `time.perf_counter` tells them."""

    def data_received(self, data: bytes) -> None:
        self.received_at = time.perf_counter()
        super().data_received(data)


class _NotTakenError(Exception):
    """A client does not read what it is sent."""


class _Conversation:
    """One connection's requests, in their order."""

    def __init__(self, connection: _Connection, answers: Answers, sessions: Sessions, limits: Limits) -> None:
        self.session: Session = sessions.open(connection)
        self._connection, self._answers, self._sessions, self._limits = connection, answers, sessions, limits
        self._is_first = True
        self._prev_total_ms: float | None = None

    async def send(self, message: bytes) -> None:
        """Sends a frame.

        Raises:
            _NotTakenError: the client does not read.
        """
        try:
            async with asyncio.timeout(self._limits.send_s):
                await self._connection.send(message)
        except TimeoutError as error:
            raise _NotTakenError from error

    async def hear(self, frame: bytes | str) -> None:
        """Answers one frame."""
        start = self._connection.received_at
        if self.session.owner is not self._connection:
            return  # it was closed, and what it had sent before goes unheard
        if isinstance(frame, str):
            raise protocol.ProtocolError(f"messages are binary frames of msgpack; got text: {protocol.shown(frame)}")
        is_quick = len(frame) < THREAD_BYTES
        message = protocol.unpack_map(frame) if is_quick else await asyncio.to_thread(protocol.unpack_map, frame)
        request = requests.parse(message)
        decoded = time.perf_counter()
        if request is None:
            self.session.reset()
            self._is_first = False
            return
        reply = await self._lost_reply(frame) if self._is_first else None
        self._is_first = False
        if self.session.owner is not self._connection:
            return  # closed while it was looked for
        if reply is None:
            reply = await self._reply(frame, request, start, decoded)
        await self.send(reply)
        self._prev_total_ms = 1000 * (time.perf_counter() - start)

    async def _lost_reply(self, frame: bytes) -> bytes | None:
        """Returns the reply that a broken connection did not get, if this is it again; takes its session over."""
        session = await self._sessions.taken_over(frame, self.session)
        if session is None:
            return None
        logger.info("%s goes on with a closed connection's session", _name(self._connection))
        self.session = session
        return session.last_reply

    async def _reply(self, frame: bytes, request: requests.Request, start: float, decoded: float) -> bytes:
        session = self.session
        async with session.lock:
            session.last_request, session.last_reply = frame, None
            answer = await self._answers.answer(session, request)
            done = time.perf_counter()
            timing = {
                "infer_ms": 1000 * (done - decoded),
                "decode_ms": 1000 * (decoded - start),
                **dataclasses.asdict(answer.timing),
            }
            if self._prev_total_ms is not None:
                timing["prev_total_ms"] = self._prev_total_ms
            session.last_reply = protocol.pack(answer.reply | {protocol.SERVER_TIMING: timing})
            return session.last_reply


async def _refuse(connection: ServerConnection, error: Exception) -> None:
    """Tells a client what was wrong, as far as that is its business, and closes its connection."""
    if isinstance(error, ValueError | KeyError):
        reason = protocol.printable(str(error.args[0])) if error.args else type(error).__name__
        logger.warning("error of %s: %s", _name(connection), reason)
    else:
        reason = "the server failed at this request; its log says why"
        logger.error("request of %s failed", _name(connection), exc_info=error)
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(10):
            await connection.send(f"error: {reason}")
            await connection.close(CloseCode.INTERNAL_ERROR, "Internal server error: see the text frame before")


def _name(connection: ServerConnection) -> str:
    return str(connection.remote_address)
