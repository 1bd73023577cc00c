import logging
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from websockets.sync.server import serve

from openpi_b1k.serving import protocol
from openpi_b1k.serving.client import Client, ConnectionLostError, Patience, PolicyError, QueryTimeoutError
from tests.serving import fakes
from tests.serving.fakes import HORIZON, FakePolicy, client, expected, observation, serving, stacked

REPOSITORY = pathlib.Path(__file__).parents[2]


def healthy(connection, request):
    return connection.respond(200, "OK\n") if request.path == "/healthz" else None


class Scripted:
    """A server that answers each request with the next of its replies: bytes, text, a dict, or what it is to do."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.num_connections = 0

    def talk(self, connection):
        self.num_connections += 1
        connection.send(protocol.pack({"connection": self.num_connections}))
        for frame in connection:
            self.requests.append(protocol.unpack(frame))
            if "reset" in self.requests[-1]:
                continue
            reply = self.replies.pop(0)
            if reply == "hang up":
                connection.socket.close()
                return
            if reply is not None:
                connection.send(reply if isinstance(reply, str) else protocol.pack(reply))

    def __enter__(self):
        self.server = serve(self.talk, "127.0.0.1", 0, process_request=healthy, compression=None, max_size=None)
        self.server.__enter__()
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self.server.socket.getsockname()[1]

    def __exit__(self, *exception):
        self.server.__exit__(*exception)
        self.thread.join()


def action(value=0.0, *shape):
    return {"action": np.full((*shape, 23), value, np.float32)}


def test_it_needs_numpy_msgpack_and_websockets_alone():
    code = """
import sys
allowed = set(sys.stdlib_module_names) | {"numpy", "msgpack", "websockets", "openpi_b1k"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import openpi_b1k.serving.client
print(*sorted(name for name in sys.modules if name.startswith("openpi_b1k")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == [
        "openpi_b1k", "openpi_b1k.serving", "openpi_b1k.serving.client", "openpi_b1k.serving.protocol",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(), (2,)])
def test_actions_of_one_and_of_many_environments(shape):
    policy = FakePolicy()
    seen = observation(3) if not shape else stacked(observation(3), observation(3))
    with serving(policy) as port, client(port) as one:
        for step in range(2 * HORIZON):
            np.testing.assert_array_equal(one.act(seen), np.broadcast_to(expected(3, step), (*shape, 23)))
        assert one.last_timing["infer_ms"] > 0


def test_a_chunk_is_replayed_without_asking_and_dropped_at_a_reset():
    scripted = Scripted(*[{"action": np.full((2, 23), 10.0 * i, np.float32)} for i in range(2)])
    for i, reply in enumerate(scripted.replies):
        reply["action_chunk"] = reply["action"][:, None] + np.arange(3, dtype=np.float32)[:, None]
        assert reply["action_chunk"].shape == (2, 3, 23), i
    with scripted as port, client(port, replay_chunk_size=3) as one:
        values = [one.act({"x": step})[1, 0] for step in range(2)]
        one.reset()
        values.append(one.act({"x": 2})[0, 0])
        assert values == [0, 1, 10]
    assert scripted.requests == [
        {"x": 0, "__action_chunk_size__": 3},
        {"reset": True},
        {"x": 2, "__action_chunk_size__": 3},
    ]


def test_without_a_chunk_it_asks_at_every_step_for_good(caplog):
    scripted = Scripted(action(1), action(2))
    with scripted as port, client(port, replay_chunk_size=3) as one:
        assert [one.act({"x": step})[0] for step in range(2)] == [1, 2]
    assert scripted.requests == [{"x": 0, "__action_chunk_size__": 3}, {"x": 1}]
    assert caplog.text.count("has no 3 actions to replay") == 1


@pytest.mark.parametrize("chunk", [np.zeros((2, 23), np.float32), np.ones((3, 23), np.float32)])
def test_a_chunk_of_another_shape_or_beginning_is_an_error(chunk):
    reason = r"'action_chunk' must be \[3, 23\] and begin with 'action'"
    scripted = Scripted(action(0) | {"action_chunk": chunk})
    with scripted as port, client(port, replay_chunk_size=3) as one, pytest.raises(PolicyError, match=reason):
        one.act({})


def test_a_reply_without_an_action_is_asked_for_again():
    scripted = Scripted({"other": 1}, {}, action(4))
    with scripted as port, client(port) as one:
        assert one.act({"x": 1})[0] == 4
    assert scripted.requests == [{"x": 1}] * 3
    with (
        Scripted({}, {}, {}) as port,
        client(port) as one,
        pytest.raises(PolicyError, match="3 replies had no 'action'"),
    ):
        one.act({})


def test_text_is_an_error():
    with Scripted("it is broken") as port, client(port) as one, pytest.raises(PolicyError, match="it is broken"):
        one.act({})


def test_a_broken_connection_is_made_again_and_the_observation_sent_again():
    scripted, pauses = Scripted(action(1), "hang up", action(2)), []
    with scripted as port, Client(port=port, sleep=pauses.append) as one:
        assert [one.act({"x": step})[0] for step in range(2)] == [1, 2]
        assert one.metadata == {"connection": 2}
    assert scripted.requests == [{"x": 0}, {"x": 1}, {"x": 1}]
    assert pauses == [5.0]


def test_there_are_three_reconnects_between_resets():
    scripted = Scripted(*["hang up"] * 3, action(1), "hang up", *[action(2)] * 2, *["hang up"] * 3)
    with scripted as port, client(port) as one:
        assert one.act({})[0] == 1
        with pytest.raises(ConnectionLostError, match="gave up after 3 reconnects"):
            one.act({})
    scripted = Scripted(*["hang up"] * 3, action(1), "hang up", action(2))
    with scripted as port, client(port) as one:
        one.act({})
        one.reset()
        assert one.act({})[0] == 2


def test_a_server_that_is_gone_is_given_up():
    with Scripted() as port:
        one = client(port)
    with pytest.raises(ConnectionLostError, match="gave up after 3 reconnects"):
        one.act({})


def test_a_reply_that_takes_too_long():
    with Scripted(None) as port:
        one = Client(port=port, patience=Patience(query_s=0.01))
        with pytest.raises(QueryTimeoutError, match=r"no reply within 0\.01 s"):
            one.act({})


def test_it_waits_for_the_server_to_be_healthy(caplog):
    caplog.set_level(logging.INFO)
    with Scripted(action(1)) as port:
        healths = iter([False, False, True])
        pauses = []

        class Late(Client):
            def is_healthy(self):
                return super().is_healthy() and next(healths)

        with Late(port=port, sleep=pauses.append) as one:
            assert one.act({})[0] == 1
    assert pauses == [5.0, 5.0]


def test_a_server_is_left_and_found_again_within_an_episode():
    """Our server and our client: a connection cut in the middle goes on with the plan at hand."""
    policy = FakePolicy()
    with serving(policy) as port, client(port) as one:
        for step in range(HORIZON):
            if step == 2:
                one._connection.socket.close()  # noqa: SLF001 - the network's fault, not the client's
            np.testing.assert_array_equal(one.act(observation(5)), expected(5, step if step < 2 else step - 1))
        assert len(policy.batches) == 1


def test_a_refused_key_and_a_bad_size():
    with serving(FakePolicy(), api_key="x") as port, pytest.raises(ConnectionLostError, match="401"):
        client(port, api_key="y")
    with pytest.raises(ValueError, match="replay_chunk_size must be at least 2"):
        fakes.client(1, replay_chunk_size=1)
