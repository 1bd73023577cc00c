"""A server among clients that break, lie, vanish and flood: they hurt themselves alone."""

import contextlib
import gc
import random
import socket
import struct
import threading

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from openpi_b1k.serving import protocol
from openpi_b1k.serving.requests import OPENPI_IMAGES, OPENPI_STATE
from openpi_b1k.serving.sessions import Session
from tests.serving.fakes import FakePolicy, client, expected, observation, raw_connection, serving
from tests.serving.test_protocol import WHOLE, mutated

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def ask(connection, message):
    connection.send(message if isinstance(message, bytes) else protocol.pack(message))
    return connection.recv(10)


def action(connection, message):
    return protocol.unpack(ask(connection, message))["action"]


def refusal(connection, message):
    """Returns the text frame that a message gets, after which the connection must be closed with 1011."""
    text = ask(connection, message)
    assert isinstance(text, str)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(10)
    assert closed.value.rcvd.code == 1011
    return text


class Failing(FakePolicy):
    """Fails as its observation's value says."""

    def prepare(self, sample):
        if sample["proprio"][0] == 1:
            next(iter(()))
        if sample["proprio"][0] == 2:
            raise SystemExit("secret of the inside")
        return super().prepare(sample)

    def predict(self, inputs):
        chunks = super().predict(inputs)
        for i, one in enumerate(inputs):
            if one["value"] == 3:
                raise ValueError("secret of the inside")
            if one["value"] == 4:
                raise SystemExit("secret of the inside")
            if one["value"] == 5:
                chunks[i, 1] = np.nan
        return chunks


@pytest.mark.parametrize("value", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["evaluator", "openpi"])
def test_a_policy_that_fails_is_the_servers_fault_and_no_secret_is_told(value, kind, caplog):
    message = observation(value)
    if kind == "openpi":
        message = {key: np.zeros((6, 6, 3), np.uint8) for key in OPENPI_IMAGES.values()}
        message |= {OPENPI_STATE: observation(value)["robot_r1::proprio"], "prompt": "Go."}
    with serving(Failing(), window_s=30.0) as port, raw_connection(port) as good, raw_connection(port) as bad:
        good.send(protocol.pack(observation(9)))  # in the same call
        text = refusal(bad, message)
        assert text == "error: the server failed at this request; its log says why"
        np.testing.assert_array_equal(protocol.unpack(good.recv(10))["action"], expected(9, 0))
    told = {1: "an iterator ended early", 5: "a chunk of policy 'fake' holds NaN"}.get(value, "secret of the inside")
    assert told in caplog.text


def test_what_a_client_writes_forges_no_line_of_the_log(caplog):
    with serving(FakePolicy()) as port, raw_connection(port) as connection:
        text = refusal(connection, {"a\n12:00:00 I all is well\x1b[2J": 1})
    assert "this message has: a?12:00:00 I all is well?[2J" in text
    assert all("\n" not in record.getMessage() and "\x1b" not in record.getMessage() for record in caplog.records)


def test_what_a_client_writes_is_not_repeated_at_length(caplog):
    class Quoting(FakePolicy):
        def prepare(self, sample):
            if len(sample["prompt"]) > 100:
                raise ValueError(f"the prompt {sample['prompt']!r} is too long")
            return super().prepare(sample)

    with serving(Quoting()) as port, raw_connection(port) as connection:
        text = refusal(connection, observation() | {"prompt": "x" * 60_000})
    assert "the prompt 'xxx" in text
    assert len(text) < 1100
    assert max(len(record.getMessage()) for record in caplog.records) < 1100


def test_a_client_that_breaks_off_while_it_waits_for_a_lost_reply_finds_it_at_its_next_attempt():
    policy = FakePolicy()
    with serving(policy) as port:
        policy.gate.clear()
        with raw_connection(port) as connection:
            connection.send(protocol.pack(observation(1)))
            assert policy.entered.acquire(timeout=10)
        with raw_connection(port) as connection:
            connection.send(protocol.pack(observation(1)))
            connection.ping().wait(10)  # the server has read the request
        with raw_connection(port) as connection:
            connection.send(protocol.pack(observation(1)))
            connection.ping().wait(10)
            policy.gate.set()
            np.testing.assert_array_equal(protocol.unpack(connection.recv(10))["action"], expected(1, 0))
            np.testing.assert_array_equal(action(connection, observation(2)), expected(1, 1))
    assert len(policy.batches) == 1


def test_many_that_return_at_once_with_the_same_request_get_one_session_between_them():
    policy = FakePolicy()
    with serving(policy) as port:
        with raw_connection(port) as connection:
            ask(connection, observation(1))
            ask(connection, observation(2))
        with contextlib.ExitStack() as exits:
            again = [exits.enter_context(raw_connection(port)) for _ in range(8)]
            for connection in again:
                connection.send(protocol.pack(observation(2)))
            firsts = [float(protocol.unpack(connection.recv(10))["action"][0]) for connection in again]
            # One goes on with the plan seen at 1, at its second action; the others have plans of their own.
            assert sorted(firsts) == sorted([float(expected(1, 1)[0]), *[2.0] * 7])
            seconds = [float(action(connection, observation(3))[0]) for connection in again]
            assert sorted(seconds) == sorted([float(expected(1, 2)[0]), *[float(expected(2, 1)[0])] * 7])


def test_a_lost_reply_is_not_given_after_a_reset_nor_after_an_error():
    policy = FakePolicy()
    with serving(policy) as port:
        with raw_connection(port) as connection:
            ask(connection, observation(1))
            connection.send(protocol.pack({"reset": True}))
        with raw_connection(port) as connection:
            ask(connection, observation(1))
            refusal(connection, observation(1) | {"task_id": "x"})
        with raw_connection(port) as connection:
            ask(connection, observation(1))
    assert len(policy.batches) == 3


def test_a_storm_of_resets_and_of_requests_that_do_not_wait_is_answered_in_order():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        for value in range(50):
            for _ in range(20):
                connection.send(protocol.pack({"reset": True}))
            for _ in range(2):
                connection.send(protocol.pack(observation(value)))
        for value in range(50):
            for step in range(2):
                got = protocol.unpack(connection.recv(10))["action"]
                np.testing.assert_array_equal(got, expected(value, step))
    assert len(policy.batches) == 50


def raw_frame(opcode, payload, fin=True, reserved=0):
    """A websocket frame as a client sends it, masked with zeros."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return head + size + bytes(4) + payload


BROKEN_FRAMES = {
    "a reserved bit, as of compression": raw_frame(2, b"\x80", reserved=4),
    "an unknown opcode": raw_frame(11, b""),
    "a fragment of nothing": raw_frame(0, b"\x80"),
    "a fragmented ping": raw_frame(9, b"", fin=False),
    "unmasked": b"\x82\x01\x80",
    "text that is no UTF-8": raw_frame(1, b"\xff"),
    "more than allowed": b"\x82\xff" + struct.pack(">Q", 2**40) + bytes(4),
    "more than there can be": b"\x82\xff" + b"\xff" * 8 + bytes(4),
    "half a frame": raw_frame(2, WHOLE)[:50],
    "half a message": raw_frame(2, WHOLE[:100], fin=False),
}


@pytest.mark.parametrize("data", BROKEN_FRAMES.values(), ids=BROKEN_FRAMES)
def test_broken_frames_end_their_connection_alone(data):
    with serving(FakePolicy()) as port, raw_connection(port) as bystander:
        ask(bystander, observation(1))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as broken:
            broken.sendall(HANDSHAKE + data)
            broken.shutdown(socket.SHUT_WR)
            while broken.recv(2**16):  # until the server has closed it
                pass
        np.testing.assert_array_equal(action(bystander, observation(2)), expected(1, 1))


def test_clients_that_vanish_during_a_call_leave_the_others_their_chunks():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as stays:
        policy.gate.clear()
        stays.send(protocol.pack(observation(1)))
        assert policy.entered.acquire(timeout=10)
        for value in range(10):
            with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as gone:
                gone.send(protocol.pack(observation(100 + value)))
                gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                gone.socket.shutdown(socket.SHUT_RDWR)
        policy.gate.set()
        np.testing.assert_array_equal(protocol.unpack(stays.recv(10))["action"], expected(1, 0))
        np.testing.assert_array_equal(action(stays, observation(2)), expected(1, 1))


def test_a_server_that_is_closed_during_a_call_ends_with_the_call():
    policy = FakePolicy()
    with contextlib.ExitStack() as exits:
        server = contextlib.ExitStack()
        port = server.enter_context(serving(policy))
        asking, waiting, idle = (exits.enter_context(raw_connection(port)) for _ in range(3))
        policy.gate.clear()
        asking.send(protocol.pack(observation(1)))
        assert policy.entered.acquire(timeout=10)
        waiting.send(protocol.pack(observation(2)))  # for the next call
        closing = threading.Thread(target=server.close)
        closing.start()
        for connection in (asking, waiting, idle):
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
            assert closed.value.rcvd.code == 1001
        policy.gate.set()
        closing.join(20)
        assert not closing.is_alive()


def test_sessions_of_clients_that_failed_are_not_kept_in_memory():
    def sessions():
        gc.collect()
        return sum(type(one) is Session for one in gc.get_objects())

    with serving(FakePolicy()) as port:
        before = sessions()
        for value in range(30):
            with raw_connection(port) as connection:
                ask(connection, observation(value))
                refusal(connection, b"\xc1")
        with raw_connection(port) as connection:
            ask(connection, observation(1))
        assert sessions() <= before + 1  # the last one's, for 60 s


def storm(port, num_messages, seed):
    """Sends mutated messages, each on a connection of its own until it is closed; returns how many were answered."""
    draw, num_answered = random.Random(seed), 0
    for _ in range(num_messages):
        changes = [
            (draw.randrange(len(WHOLE)), draw.randrange(4), draw.randbytes(draw.randrange(7)))
            for _ in range(draw.randint(1, 6))
        ]
        with raw_connection(port) as connection:
            reply = ask(connection, mutated(changes) if draw.random() < 0.7 else draw.randbytes(draw.randrange(99)))
            if isinstance(reply, bytes):
                assert np.isfinite(protocol.unpack(reply)["action"]).all()
                num_answered += 1
            else:
                assert reply.startswith("error: ")
                assert "the server failed" not in reply  # it was the message, and the server saw that
    return num_answered


def check_storm(num_messages):
    policy = FakePolicy()
    with serving(policy) as port, client(port) as bystander:
        for step in range(4):
            np.testing.assert_array_equal(bystander.act(observation(5)), expected(5, step))
            answered = storm(port, num_messages // 4, seed=step)
            assert answered < num_messages // 4


def test_mutated_messages_on_the_wire_harm_no_other_connection():
    check_storm(80)


@pytest.mark.slow
def test_thousands_of_mutated_messages_on_the_wire_harm_no_other_connection():
    check_storm(4000)
