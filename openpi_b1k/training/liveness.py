"""Whether the other processes of a run are alive, and word from one that ends: over TCP, process 0 in the middle.

JAX misses a dead process too, but says so by aborting without a line that a user can read, and of a process that ends
with an error it learns nothing: that one waits for the others, and they for its share of the next step.

Every process keeps one connection, to process 0. The system closes it when a process dies, whatever the cause; where a
machine or network fails or a process stands still, heartbeats stay away.
"""

import contextlib
import dataclasses
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between heartbeats."""
CONNECT_S = 10.0
"""Seconds to reach process 0 at one of its addresses."""
GRACE_S = 3.0
"""Seconds that this process has to end by itself when another ends with an error: it often met the same one."""
LINGER_S = 3.0
"""Seconds that process 0 waits for the others to end first, as JAX aborts them when its coordinator is gone."""
BEAT, LEAVING, LOST = "beat", "leaving", "lost"


@dataclasses.dataclass
class Peer:
    """A process at the other end of a connection."""

    connection: socket.socket
    process: int
    host: str
    heard_at: float
    received: bytes = b""


class Liveness:
    """A thread that tells the other processes of this one, and ends this one when another is lost."""

    def __init__(
        self,
        process: int,
        num_processes: int,
        timeout_s: float,
        peers: Sequence[tuple[socket.socket, int, str]],
        end: Callable[[str], object],
    ) -> None:
        """Starts the thread.

        Args:
            process: this one's number.
            num_processes: of the run.
            timeout_s: seconds after which a process that is not heard of is lost.
            peers: (connection, process, host) of every other process for process 0, and of process 0 for the others.
            end: ends this process, saying why.
        """
        self._process, self._num_processes, self._timeout_s, self._end = process, num_processes, timeout_s, end
        now = time.monotonic()
        self._peers = [Peer(connection, number, host, now) for connection, number, host in peers]
        self._lock = threading.Lock()
        self._ending: tuple[float, str] | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._thread.start()

    def fail(self, why: str) -> None:
        """Tells every other process that this one ends for lack of an alternative, so that they need not wait for it.

        Process 0 then waits a moment for the others to end first. If another was lost before, this process ends here
        for that reason.
        """
        if self._ending is not None:
            self._thread.join()
        self._tell([LOST, f"process {self._process} of {self._num_processes} ({socket.gethostname()}) {why}", GRACE_S])
        deadline = time.monotonic() + GRACE_S + LINGER_S
        while self._process == 0 and self._peers and time.monotonic() < deadline:
            time.sleep(0.05)
        self.close()

    def close(self) -> None:
        """Takes leave of the others, which do not miss this process then."""
        self._tell([LEAVING])
        self._is_closed.set()
        self._thread.join()
        for peer in self._peers:
            peer.connection.close()

    def _run(self) -> None:
        beaten_at = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while not self._is_closed.is_set() and not self._is_time_to_end():
                for key, _ in selector.select(BEAT_S / 10):
                    if not self._hear(key.data):
                        selector.unregister(key.data.connection)
                now = time.monotonic()
                if now - beaten_at >= BEAT_S:
                    beaten_at = now
                    self._tell([BEAT])
                    self._miss_silent(now)

    def _is_time_to_end(self) -> bool:
        """Ends this process if another was lost and it is time to."""
        if self._ending is None:
            return False
        deadline, why = self._ending
        is_alone = self._process == 0 and not self._peers
        if time.monotonic() < deadline and not is_alone:
            return False
        self._end(f"{why}; go on from the last checkpoint with --resume")
        return True

    def _hear(self, peer: Peer) -> bool:
        """Reads what a peer says; returns whether there may be more."""
        try:
            data = peer.connection.recv(4096)
        except OSError:
            data = b""
        peer.heard_at = time.monotonic()
        *lines, peer.received = (peer.received + data).split(b"\n")
        for line in lines:
            kind, *rest = json.loads(line)
            if kind == LEAVING:
                self._forget(peer)
                return False
            if kind == LOST:
                self._lose(*rest, excused=peer)
        if not data:
            self._forget(peer)
            self._lose(f"{self._named(peer)} was lost: it has ended without a word, see its log", 0.0)
            return False
        return True

    def _miss_silent(self, now: float) -> None:
        for peer in self._peers:
            if now - peer.heard_at > self._timeout_s:
                self._forget(peer)
                self._lose(
                    f"{self._named(peer)} was lost: it has not been heard of for {now - peer.heard_at:.0f} s, longer "
                    f"than --distributed.heartbeat-timeout-s {self._timeout_s:g}",
                    0.0,
                )
                return

    def _lose(self, why: str, grace_s: float, excused: Peer | None = None) -> None:
        """Takes note that the run cannot go on, and tells the others, but for the one that has told us."""
        if self._ending is not None:
            return
        self._tell([LOST, why, grace_s], excused)
        linger = LINGER_S if self._process == 0 else 0.0
        self._ending = (time.monotonic() + grace_s + linger, why)

    def _tell(self, message: list[object], excused: Peer | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            for peer in self._peers:
                if peer is not excused:
                    with contextlib.suppress(OSError):  # one that is gone is noticed by its silence
                        peer.connection.sendall(line)

    def _forget(self, peer: Peer) -> None:
        with self._lock:
            self._peers = [other for other in self._peers if other is not peer]

    def _named(self, peer: Peer) -> str:
        return f"process {peer.process} of {self._num_processes} ({peer.host})"


class Listener:
    """Process 0's end, before the others have come."""

    def __init__(self) -> None:
        """Listens on a free port of every address of this machine."""
        self._socket = socket.create_server(("", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]

    def accept(self, num_others: int, token: str) -> list[tuple[socket.socket, int, str]]:
        """Returns (connection, process, host) of those who came with the run's token, of `num_others` at most.

        Who has not come within `CONNECT_S` could not reach this process, and has said so.
        """
        peers: list[tuple[socket.socket, int, str]] = []
        deadline = time.monotonic() + CONNECT_S
        with self._socket, contextlib.suppress(TimeoutError):
            while len(peers) < num_others:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                connection, _ = self._socket.accept()
                hello = _read_line(connection, time.monotonic() + BEAT_S)
                if hello and hello[0] == token:
                    connection.sendall(json.dumps([token, socket.gethostname()]).encode() + b"\n")
                    peers.append((connection, hello[1], hello[2]))
                else:
                    connection.close()
        return peers


def connect(addresses: Sequence[tuple[str, int]], process: int, token: str) -> tuple[socket.socket, int, str] | None:
    """Returns (connection, 0, host) of process 0: the first address where the run's token is known; None: nowhere."""
    deadline = time.monotonic() + CONNECT_S
    for address in addresses:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(address, timeout=CONNECT_S / len(addresses))
            connection.sendall(json.dumps([token, process, socket.gethostname()]).encode() + b"\n")
            answer = _read_line(connection, deadline)
            if answer and answer[0] == token:
                return connection, 0, answer[1]
            connection.close()
    return None


def own_hosts() -> list[str]:
    """Returns names and addresses of this machine under which others may reach it, likely ones first."""
    name = socket.gethostname()
    hosts = [name, socket.getfqdn()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: this asks the system which address it would send from
        hosts.insert(0, probe.getsockname()[0])
    with contextlib.suppress(OSError):
        hosts += [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    return [*dict.fromkeys(hosts), "127.0.0.1"]


def _read_line(connection: socket.socket, deadline: float) -> list | None:
    """Returns a peer's first line, or None if it is none of ours."""
    data = b""
    with contextlib.suppress(OSError, ValueError):
        while not data.endswith(b"\n") and len(data) < 512:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            received = connection.recv(1)
            if not received:
                return None
            data += received
        connection.settimeout(BEAT_S)
        line = json.loads(data)
        return line if isinstance(line, list) else None
    return None
