"""Asks a policy server for actions, as BEHAVIOR-1K's evaluators do. Needs NumPy, msgpack and websockets, no more.

    with Client("127.0.0.1", 8000) as client:
        client.reset()
        action = client.act(observation)

A connection that breaks is made again and the observation sent once more, as the evaluator of 2026 does it: up to three
times between resets, each after a health check. Source: OmniGibson `eval/utils/network_utils.py`.
"""

import contextlib
import dataclasses
import http.client
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from openpi_b1k.serving import protocol

logger = logging.getLogger(__name__)


class ConnectionLostError(RuntimeError):
    """The server cannot be reached any more."""


class QueryTimeoutError(RuntimeError):
    """The server did not answer in time."""


class PolicyError(RuntimeError):
    """The server answered with an error, or with what is no action."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a client waits, and how often it tries."""

    health_timeout_s: float = 2.0
    health_pause_s: float = 5.0
    """Between health checks while a server starts."""
    greeting_s: float = 10.0
    query_s: float = 600.0
    max_reconnects: int = 3
    """Between two resets."""
    reconnect_pause_s: float = 5.0
    max_resends: int = 2
    """Of an observation whose reply had no action."""


class Client:
    """A connection to a policy server; not for several threads at once."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        api_key: str | None = None,
        replay_chunk_size: int | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Waits until the server is healthy, connects and reads its greeting.

        Args:
            host: of the server.
            port: of the server.
            api_key: what the server was started with.
            replay_chunk_size: execute so many actions of a reply without asking; at least 2, None: ask every time.
            patience: how long to wait.
            sleep: pauses, in seconds.

        Raises:
            ConnectionLostError: the server refuses the connection.
            ValueError: `replay_chunk_size` is out of range.
        """
        if replay_chunk_size is not None and replay_chunk_size < 2:
            raise ValueError(
                f"replay_chunk_size must be at least 2, or None to ask every time; got {replay_chunk_size}"
            )
        self._address = (host, port)
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key is not None else {}
        self._replay_chunk_size = replay_chunk_size
        self._patience = patience or Patience()
        self._sleep = sleep
        self._exits = contextlib.ExitStack()
        self._replay: list[np.ndarray] = []
        self._num_reconnects = 0
        self.last_timing: dict[str, float] = {}
        """What the server said of its time in its last reply, in ms."""
        while not self.is_healthy():
            logger.info("waiting for the server at %s:%d", *self._address)
            self._sleep(self._patience.health_pause_s)
        self._connection, self.metadata = self._connect()

    def __enter__(self) -> "Client":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the connection."""
        self.close()

    def is_healthy(self) -> bool:
        """Returns whether the server says it is ready."""
        connection = http.client.HTTPConnection(*self._address, timeout=self._patience.health_timeout_s)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False

    @property
    def is_replaying(self) -> bool:
        """Whether the next action is known already, so that `act` looks at no observation."""
        return bool(self._replay)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the next action, float32 [23], or [n, 23] for an observation of n environments.

        Raises:
            ConnectionLostError: the connection broke and could not be made again.
            QueryTimeoutError: the server took too long; the connection is closed.
            PolicyError: the server refused the observation, or its replies hold no action.
        """
        if self._replay:
            return self._replay.pop(0)
        request = dict(observation)
        if self._replay_chunk_size is not None:
            request[protocol.CHUNK_SIZE] = self._replay_chunk_size
        for _ in range(1 + self._patience.max_resends):
            reply = self.infer(request)
            if protocol.ACTION in reply:
                break
            logger.warning("a reply without %r has: %s", protocol.ACTION, ", ".join(reply))
        else:
            raise PolicyError(f"{1 + self._patience.max_resends} replies had no {protocol.ACTION!r}")
        action = np.asarray(reply[protocol.ACTION], np.float32)
        if self._replay_chunk_size is not None:
            self._keep_replay(action, reply.get(protocol.ACTION_CHUNK))
        return action

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the server's reply as it is; for openpi's keys, `actions` is a whole chunk.

        Raises:
            ConnectionLostError: the connection broke and could not be made again.
            QueryTimeoutError: the server took too long; the connection is closed.
            PolicyError: the server refused the observation.
        """
        request = protocol.pack(dict(observation))
        while True:
            try:
                self._connection.send(request)
                frame = self._connection.recv(self._patience.query_s)
                break
            except TimeoutError as error:
                self.close()
                raise QueryTimeoutError(f"no reply within {self._patience.query_s:g} s") from error
            except ConnectionClosed as error:
                self._reconnect(error)
        if isinstance(frame, str):
            raise PolicyError(frame)
        reply = protocol.unpack_map(frame)
        self.last_timing = reply.get(protocol.SERVER_TIMING, {})
        return reply

    def reset(self) -> None:
        """Begins a new episode in every environment of this connection. The server does not reply.

        Raises:
            ConnectionLostError: the connection broke and could not be made again.
        """
        self._replay, self._num_reconnects = [], 0
        while True:
            try:
                self._connection.send(protocol.pack({protocol.RESET: True}))
                return
            except ConnectionClosed as error:
                self._reconnect(error)

    def close(self) -> None:
        """Closes the connection."""
        self._exits.close()

    def _keep_replay(self, action: np.ndarray, chunk: Any) -> None:
        if chunk is None:
            logger.warning("the server has no %d actions to replay: asking at every step", self._replay_chunk_size)
            self._replay_chunk_size = None
            return
        chunk = np.asarray(chunk, np.float32)
        expected = (*action.shape[:-1], self._replay_chunk_size, action.shape[-1])
        if chunk.shape != expected or not np.array_equal(chunk[..., 0, :], action):
            raise PolicyError(
                f"{protocol.ACTION_CHUNK!r} must be {list(expected)} and begin with {protocol.ACTION!r}; "
                f"got {list(chunk.shape)}"
            )
        self._replay = list(np.moveaxis(chunk, -2, 0)[1:])

    def _connect(self) -> tuple[ClientConnection, dict[str, Any]]:
        """Returns a new connection and its greeting; the one before is closed."""
        host, port = self._address
        self._exits.close()
        try:
            connection = self._exits.enter_context(
                connect(
                    f"ws://{host}:{port}",
                    additional_headers=self._headers,
                    compression=None,
                    max_size=None,
                    open_timeout=self._patience.greeting_s,
                    ping_interval=60,
                    ping_timeout=None,
                    proxy=None,
                )
            )
            return connection, protocol.unpack_map(connection.recv(self._patience.greeting_s, decode=False))
        except (OSError, InvalidHandshake, ConnectionClosed) as error:  # a timeout is an OSError
            self._exits.close()
            raise ConnectionLostError(f"no connection to {host}:{port}, or no greeting: {error}") from error

    def _reconnect(self, cause: Exception) -> None:
        """Connects again, or gives up."""
        while self._num_reconnects < self._patience.max_reconnects:
            self._num_reconnects += 1
            logger.warning("lost the server (%s); reconnect %d", cause, self._num_reconnects)
            self._sleep(self._patience.reconnect_pause_s)
            if not self.is_healthy():
                continue
            try:
                self._connection, self.metadata = self._connect()
                return
            except ConnectionLostError as error:
                cause = error
        raise ConnectionLostError(f"gave up after {self._num_reconnects} reconnects: {cause}") from cause
