"""Who acts: servers over their protocol, as the evaluators ask them, or the mean demonstration as a control."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from openpi_b1k.evaluation.closed_loop.environments import stacked
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving.client import Client, ConnectionLostError, Patience, PolicyError, QueryTimeoutError

Wire = Literal["2025", "2026"]
Blind = Callable[[dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a server is and how it is asked."""

    host: str
    port: int
    wire: Wire = "2026"
    """2025: one environment, unbatched; 2026: arrays with the environments in front."""
    replay_chunk_size: int | None = None
    """Execute so many actions of a reply without asking."""
    api_key: str | None = None
    patience: Patience = dataclasses.field(default_factory=Patience)
    start_s: float = 60.0
    """How long to wait for the server to be healthy."""
    sleep: Callable[[float], None] = time.sleep

    def connect(self) -> Client:
        """Returns a client.

        Raises:
            ConnectionLostError: no server is healthy there in time, or it refuses the connection.
        """
        waited = 0.0

        def sleep(seconds: float) -> None:
            nonlocal waited
            if waited >= self.start_s:
                raise ConnectionLostError(
                    f"no server at {self.host}:{self.port} was ready within {self.start_s:g} s; start one with "
                    "scripts/serve_b1k.py"
                )
            waited += seconds
            self.sleep(seconds)

        client = Client(
            self.host,
            self.port,
            api_key=self.api_key,
            replay_chunk_size=self.replay_chunk_size,
            patience=self.patience,
            sleep=sleep,
        )
        waited = -float("inf")  # from now on it sleeps between reconnects
        return client


class Timings:
    """How long replies took, and what the servers said of it; in ms."""

    NAMES = ("decode_ms", "queue_wait_ms", "preprocess_ms", "model_ms", "post_ms")

    def __init__(self) -> None:
        """Starts without any."""
        self._values: dict[str, list[float]] = {name: [] for name in (*self.NAMES, "reply_ms")}

    def add(self, reply_ms: float, told: dict[str, float]) -> None:
        """Takes one reply: how long it was waited for, and the server's own figures; those of a call if there was."""
        self._values["reply_ms"].append(reply_ms)
        for name in self.NAMES:
            if name in told and (name == "decode_ms" or told.get("model_ms", 0.0) > 0):
                self._values[name].append(float(told[name]))

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Returns {what: {"p50", "p99" in ms, "count"}} of what there is any of."""
        return {
            name: {
                "p50": float(np.quantile(values, 0.5)),
                "p99": float(np.quantile(values, 0.99)),
                "count": len(values),
            }
            for name, values in self._values.items()
            if values
        }


class Remote:
    """Asks servers over their protocol: one for all environments, or one for each. Connects again after an error."""

    def __init__(self, endpoints: Sequence[Endpoint], blind: Blind, timings: Timings) -> None:
        """Connects to none yet.

        Args:
            endpoints: one, or as many as the largest group has environments.
            blind: what is made of each observation before it is sent.
            timings: take each reply's.
        """
        self._endpoints, self._blind, self._timings = endpoints, blind, timings
        self._threads = concurrent.futures.ThreadPoolExecutor(len(endpoints), "client")
        self._clients: list[Client] = []
        self._num_environments = 0
        self._gone: str | None = None

    def __enter__(self) -> "Remote":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the connections."""
        self._disconnect()
        self._threads.shutdown()

    @property
    def needs_observations(self) -> bool:
        """Whether a server is asked for the next actions."""
        return not all(client.is_replaying for client in self._clients)

    def connect(self) -> None:
        """Connects to all servers.

        Raises:
            ConnectionLostError: one cannot be reached.
        """
        for endpoint in self._endpoints[len(self._clients) :]:
            self._clients.append(endpoint.connect())

    def reset(self, num_environments: int) -> None:
        """Begins new episodes in a group of environments, on the connections there are or on new ones.

        Raises:
            ConnectionLostError: a server cannot be reached; from then on at once, without waiting for it again.
            ValueError: the endpoints are not for so many environments.
        """
        most = len(self._endpoints)
        if (most > 1 or self._endpoints[0].wire == "2025") and num_environments > most:
            raise ValueError(f"{most} endpoints cannot serve {num_environments} environments like this")
        if self._gone is not None:
            raise ConnectionLostError(self._gone)
        self._num_environments = num_environments
        try:
            self.connect()
            for client in self._clients:
                client.reset()
        except ConnectionLostError as error:
            self._disconnect()
            self._gone = str(error)
            raise

    def act(self, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns the next actions, float32 [n, 23]; several servers are asked at the same time.

        Raises:
            ConnectionLostError: a connection broke and could not be made again.
            QueryTimeoutError: a server took too long.
            PolicyError: a server refused an observation, or its reply holds no such actions.
        """
        size = self._num_environments if len(self._endpoints) == 1 else 1
        clients = self._clients[: self._num_environments // size]
        parts = [observations[i * size : (i + 1) * size] for i in range(len(clients))]
        try:
            return np.concatenate(list(self._threads.map(functools.partial(self._ask, size), clients, parts)))
        except (ConnectionLostError, QueryTimeoutError, PolicyError):
            self._disconnect()
            raise

    def _ask(self, size: int, client: Client, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns the actions of `size` environments, float32 [size, 23]."""
        if client.is_replaying:
            actions = client.act({})
        else:
            seen = [self._blind(one) for one in observations]
            is_stacked = self._endpoints[0].wire == "2026"
            start = time.perf_counter()
            actions = client.act(stacked(seen) if is_stacked else seen[0])
            self._timings.add(1000 * (time.perf_counter() - start), client.last_timing)
        if size == 1 and actions.shape == (ACTION.size,):
            actions = actions[None]
        if actions.shape != (size, ACTION.size) or not np.isfinite(actions).all():
            raise PolicyError(
                f"an answer must be {size} finite actions of {ACTION.size} entries; got shape {list(actions.shape)}"
                f"{'' if np.isfinite(actions).all() else ' with NaN or infinity'}"
            )
        return actions

    def _disconnect(self) -> None:
        for client in self._clients:
            client.close()
        self._clients = []


class Replayed:
    """Executes given commands, whatever is seen: the control of what can be had without looking."""

    needs_observations = False

    def __init__(self, commands: np.ndarray) -> None:
        """Takes the commands of all steps, float32 [steps, 23]."""
        self._commands = commands
        self._num, self._step = 0, 0

    def reset(self, num_environments: int) -> None:
        """Begins with the first command."""
        self._num, self._step = num_environments, 0

    def act(self, observations: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns the next command for every environment, float32 [n, 23]."""
        del observations
        command = self._commands[self._step]
        self._step += 1
        return np.stack([command] * self._num)
