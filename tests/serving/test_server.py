import concurrent.futures
import http.client
import logging
import threading

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.serving import protocol
from openpi_b1k.serving.assembly import Setup, serving_in_thread
from openpi_b1k.serving.client import PolicyError
from openpi_b1k.serving.prompts import Entry, PromptBook
from openpi_b1k.serving.server import Limits
from tests.serving import fakes
from tests.serving.fakes import HORIZON, FakePolicy, client, expected, observation, raw_connection, serving, stacked


def health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, response.read()


def ask(connection, message):
    connection.send(protocol.pack(message))
    return protocol.unpack(connection.recv(10))


def refusal(connection, message):
    """Returns the text frame that a message gets, after which the connection must be closed with 1011."""
    connection.send(message if isinstance(message, bytes | str) else protocol.pack(message))
    text = connection.recv(10)
    assert isinstance(text, str)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(10)
    assert closed.value.rcvd.code == 1011
    return text


def test_the_2025_evaluator_gets_one_action_at_a_time_and_asks_the_model_once_per_chunk():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        for step in range(2 * HORIZON):
            reply = ask(connection, observation(step))
            asked_at = step - step % HORIZON
            assert sorted(reply) == ["action", "server_timing"]
            assert (reply["action"].dtype, reply["action"].shape) == (np.float32, (23,))
            np.testing.assert_array_equal(reply["action"], expected(asked_at, step))
    assert policy.batches == [[(0.0, "Turn on the radio.")], [(4.0, "Turn on the radio.")]]


def test_no_image_is_looked_at_while_a_chunk_lasts():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        ask(connection, observation())
        blind = {key: value for key, value in observation().items() if not key.endswith("::rgb")}
        ask(connection, blind)
    assert policy.num_prepared == 1


def test_the_2026_evaluator_has_many_environments_in_one_call_with_their_own_prompts():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        values, tasks = [5, 6, 7], [0, 4, 0]
        for step in range(HORIZON):
            both = [observation(value, "2026", task) for value, task in zip(values, tasks, strict=True)]
            reply = ask(connection, stacked(*both))
            np.testing.assert_array_equal(reply["action"], np.stack([expected(value, step) for value in values]))
    assert policy.batches == [[(5.0, "Turn on the radio."), (6.0, "Can the meat."), (7.0, "Turn on the radio.")]]


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_the_dimension_of_proprio_alone_decides_the_reply(generation):
    with serving(FakePolicy()) as port, raw_connection(port) as connection:
        one = observation(3, generation)
        assert ask(connection, one)["action"].shape == (23,)
        connection.send(protocol.pack({"reset": True}))
        assert ask(connection, stacked(one))["action"].shape == (1, 23)


def test_openpis_client_gets_whole_chunks_and_no_state_is_kept_of_it():
    policy = FakePolicy()
    image = np.zeros((6, 6, 3), np.uint8)
    message = {
        "observation/state": observation(9)["robot_r1::proprio"],
        "observation/egocentric_camera": image,
        "observation/wrist_image_left": np.moveaxis(image, -1, 0),
        "observation/wrist_image_right": np.zeros((6, 6, 3), np.float32),
        "prompt": "Go.",
    }
    with serving(policy) as port, raw_connection(port) as connection:
        for _ in range(2):
            reply = ask(connection, message)
            np.testing.assert_array_equal(reply["actions"], np.stack([expected(9, step) for step in range(HORIZON)]))
    assert policy.batches == [[(9.0, "Go.")]] * 2


def test_a_reset_gets_no_reply_and_begins_anew_with_any_number_of_environments():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        ask(connection, stacked(observation(1), observation(2)))
        connection.send(protocol.pack({"reset": True}))
        reply = ask(connection, stacked(observation(3)))  # were there a reply to the reset, this would be it
        np.testing.assert_array_equal(reply["action"], expected(3, 0)[None])
        assert "send a reset first" in refusal(connection, stacked(observation(1), observation(2)))


def test_another_task_begins_another_plan_in_its_environment_alone():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        ask(connection, stacked(observation(1, task=0), observation(2, task=0)))
        reply = ask(connection, stacked(observation(3, task=0), observation(4, task=4)))
        np.testing.assert_array_equal(reply["action"], [expected(1, 1), expected(4, 0)])


def test_actions_to_replay():
    with serving(FakePolicy()) as port, raw_connection(port) as connection:
        first = ask(connection, stacked(observation(1), observation(2)) | {"__action_chunk_size__": 3})
        assert first["action_chunk"].shape == (2, 3, 23)
        np.testing.assert_array_equal(first["action_chunk"][:, 0], first["action"])
        np.testing.assert_array_equal(first["action_chunk"][1], [expected(2, step) for step in range(3)])
        # One action is left, which does not make three: the model is asked early.
        second = ask(connection, stacked(observation(8), observation(9)) | {"__action_chunk_size__": 3})
        np.testing.assert_array_equal(second["action_chunk"][:, 0], [expected(8, 0), expected(9, 0)])


def test_more_actions_to_replay_than_a_chunk_has_are_left_out_and_asked_for_no_more(caplog):
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        for step in range(HORIZON):
            reply = ask(connection, observation(1) | {"__action_chunk_size__": HORIZON + 1})
            assert sorted(reply) == ["action", "server_timing"]
            np.testing.assert_array_equal(reply["action"], expected(1, step))
    assert len(policy.batches) == 1
    assert "chunks to replay cannot have 5 actions here" in caplog.text


def test_connections_know_nothing_of_each_other():
    with serving(FakePolicy()) as port, raw_connection(port) as one, raw_connection(port) as other:
        ask(one, observation(1))
        np.testing.assert_array_equal(ask(other, observation(2))["action"], expected(2, 0))
        np.testing.assert_array_equal(ask(one, observation(3))["action"], expected(1, 1))
        other.send(protocol.pack({"reset": True}))
        np.testing.assert_array_equal(ask(other, observation(4))["action"], expected(4, 0))
        np.testing.assert_array_equal(ask(one, observation(3))["action"], expected(1, 2))


def test_requests_of_several_connections_share_a_call():
    policy = FakePolicy()
    with serving(policy, window_s=30.0) as port, contextlib_stack() as enter:
        connections = [enter(raw_connection(port)) for _ in range(3)]
        for value, connection in enumerate(connections):
            connection.send(protocol.pack(observation(value)))  # the call is held back until all three have asked
        for value, connection in enumerate(connections):
            reply = protocol.unpack(connection.recv(10))
            np.testing.assert_array_equal(reply["action"], expected(value, 0))
    assert [len(batch) for batch in policy.batches] == [3]


def contextlib_stack():
    import contextlib

    @contextlib.contextmanager
    def stack():
        with contextlib.ExitStack() as exits:
            yield exits.enter_context

    return stack()


def test_health_is_answered_while_the_model_computes():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        policy.gate.clear()
        connection.send(protocol.pack(observation(1)))
        assert policy.entered.acquire(timeout=10)
        assert health(port) == (200, b"OK\n")
        policy.gate.set()
        assert "action" in protocol.unpack(connection.recv(10))


def test_nothing_listens_before_all_batch_sizes_are_warm():
    policy = FakePolicy()
    with serving_in_thread(Setup(fakes.policies(policy), batch_sizes=(1, 4))):
        assert [len(batch) for batch in policy.batches] == [1, 4]


@pytest.mark.parametrize(
    ("execution", "is_guided"),
    [
        (ExecutionConfig(), False),
        (ExecutionConfig("real_time"), True),
        (ExecutionConfig(execution_horizon=2, kept_actions=1), True),
    ],
)
def test_both_programs_are_warm_where_chunks_continue_one_another(execution, is_guided):
    seen = []

    class Seeing(FakePolicy):
        def prepare(self, sample):
            seen.append("continuation" in sample and "guidance" in sample)
            return super().prepare(sample)

    with serving_in_thread(Setup(fakes.policies(Seeing()), batch_sizes=(2, 1), execution=execution)):
        assert seen == ([False, True, False, False, True, True] if is_guided else [False] * 3)


def test_kept_actions_go_with_the_question_for_the_next_chunk():
    seen = []

    class Seeing(FakePolicy):
        def prepare(self, sample):
            seen.append(sample.get("continuation"))
            return super().prepare(sample)

    execution = ExecutionConfig(execution_horizon=3, kept_actions=1)
    with serving(Seeing(), execution=execution) as port, client(port) as one:
        seen.clear()
        for step in range(4):
            one.act(observation(step))
        one.reset()
        one.act(observation(9))
    first, second, after_reset = seen
    assert first is None
    np.testing.assert_array_equal(second.actions, [expected(0, 3)])
    assert after_reset is None


def test_calls_are_filled_up_to_a_compiled_size_and_split_above_the_largest():
    policy = FakePolicy()
    with serving(policy, batch_sizes=(1, 4)) as port, raw_connection(port) as connection:
        values = [1, 2, 3, 4, 5, 6]
        reply = ask(connection, stacked(*map(observation, values)))
        np.testing.assert_array_equal(reply["action"][:, 0], np.array(values, np.float32))
        assert [[value for value, _ in batch] for batch in policy.batches] == [[1, 2, 3, 4], [5, 6, 6, 6]]


BAD = {
    "no map": (protocol.pack([1, 2]), "a message must be a map"),
    "text": ("hello", "messages are binary frames of msgpack"),
    "no msgpack": (b"\xc1\xc1", "no msgpack message"),
    "no observation": ({"hello": 1}, "this message has: hello"),
    "a missing camera": (
        {key: value for key, value in observation().items() if "zed" not in key},
        "the observation has no 'robot_r1::robot_r1:zed_link:Camera:0::rgb'",
    ),
    "NaN": (observation(np.nan), "must be finite"),
    "an unknown size": (observation() | {"robot_r1::proprio": np.zeros(9, np.float32)}, "got 9"),
    "an unknown task": (observation(task=100), r"task_id must be in [0, 99]; got 100"),
    "an untrained task": (observation(task=1), "was not trained on task 'picking_up_trash'"),
    "no task": ({k: v for k, v in observation().items() if k != "task_id"}, "nothing says what to do"),
    "an image of floats": (
        observation() | {"robot_r1::robot_r1:zed_link:Camera:0::rgb": np.zeros((6, 6, 3), np.float32)},
        "must be uint8 [height, width, 3 or 4]",
    ),
    "the model fails": (observation(666), "the server failed at this request; its log says why"),
}


@pytest.mark.parametrize(("message", "reason"), BAD.values(), ids=BAD)
def test_an_error_is_told_to_that_client_alone(message, reason):
    with serving(FakePolicy()) as port, raw_connection(port) as bystander, raw_connection(port) as connection:
        ask(bystander, observation(1))
        text = refusal(connection, message)
        assert reason in text
        assert "secret" not in text
        assert "Traceback" not in text
        np.testing.assert_array_equal(ask(bystander, observation(2))["action"], expected(1, 1))
        with raw_connection(port) as again:
            np.testing.assert_array_equal(ask(again, observation(3))["action"], expected(3, 0))


def test_a_bad_sample_does_not_harm_those_in_the_same_call():
    policy = FakePolicy()
    with serving(policy, window_s=30.0) as port, raw_connection(port) as good, raw_connection(port) as bad:
        good.send(protocol.pack(observation(1)))
        assert "must be finite" in refusal(bad, observation(np.nan))
        np.testing.assert_array_equal(protocol.unpack(good.recv(10))["action"], expected(1, 0))


def test_what_failed_inside_is_in_the_log(caplog):
    with serving(FakePolicy()) as port, raw_connection(port) as connection:
        refusal(connection, observation(666))
    assert "secret of the inside" in caplog.text


def test_a_lost_reply_is_given_to_the_next_connection_that_asks_the_same():
    policy = FakePolicy()
    with serving(policy) as port:
        with raw_connection(port) as connection:
            ask(connection, observation(1))
            lost = ask(connection, observation(2))
        with raw_connection(port) as connection:
            again = ask(connection, observation(2))
            np.testing.assert_array_equal(again["action"], lost["action"])
            assert again["server_timing"] == lost["server_timing"]
            np.testing.assert_array_equal(ask(connection, observation(3))["action"], expected(1, 2))
        with raw_connection(port) as connection:
            np.testing.assert_array_equal(ask(connection, observation(9))["action"], expected(9, 0))
    assert [batch[0][0] for batch in policy.batches] == [1, 9]


def test_a_session_is_taken_over_while_its_reply_is_computed():
    policy = FakePolicy()
    with serving(policy) as port:
        policy.gate.clear()
        with raw_connection(port) as connection:
            connection.send(protocol.pack(observation(1)))
            assert policy.entered.acquire(timeout=10)
        with raw_connection(port) as connection:
            connection.send(protocol.pack(observation(1)))
            policy.gate.set()
            np.testing.assert_array_equal(protocol.unpack(connection.recv(10))["action"], expected(1, 0))
            np.testing.assert_array_equal(ask(connection, observation(2))["action"], expected(1, 1))
    assert len(policy.batches) == 1


def test_an_open_connections_session_is_its_own():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as one, raw_connection(port) as other:
        ask(one, observation(1))
        ask(other, observation(1))
    assert len(policy.batches) == 2


def test_a_session_is_forgotten_after_its_time():
    policy = FakePolicy()
    with serving(policy, keep_s=-1.0) as port:
        for _ in range(2):
            with raw_connection(port) as connection:
                ask(connection, observation(1))
    assert len(policy.batches) == 2


def test_the_key_is_asked_for_but_not_for_health():
    with serving(FakePolicy(), api_key="s3cret") as port:
        assert health(port)[0] == 200
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "s3cret"}):
            with pytest.raises(InvalidStatus, match="401"), raw_connection(port, additional_headers=headers):
                pass
        with client(port, api_key="s3cret") as one:
            one.act(observation(1))


def test_there_is_a_limit_to_connections_and_one_that_ends_makes_room():
    with serving(FakePolicy(), limits=Limits(max_connections=1)) as port:
        with raw_connection(port), pytest.raises(InvalidStatus, match="503"), raw_connection(port):
            pass
        with client(port) as one:  # waits for health only: the place is free when the close handshake is over
            one.act(observation(1))


def test_a_message_beyond_the_limit_closes_its_connection_alone():
    with serving(FakePolicy(), limits=Limits(max_message_mib=1)) as port, raw_connection(port) as bystander:
        with raw_connection(port) as connection:
            connection.send(bytes(2**20 + 1))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
            assert closed.value.rcvd.code == 1009
        assert "action" in ask(bystander, observation(1))


def test_a_client_that_does_not_read_is_dropped(caplog):
    caplog.set_level(logging.WARNING)
    policy = FakePolicy()
    dropped = threading.Event()

    class Noticed(logging.Handler):
        def emit(self, record):
            if "did not take its reply" in record.getMessage():
                dropped.set()

    logging.getLogger("openpi_b1k.serving.server").addHandler(handler := Noticed())
    with serving(policy, limits=Limits(send_s=0.05), metadata={"long": np.zeros(64 * 2**20, np.uint8)}) as port:
        import socket

        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert dropped.wait(30)
    logging.getLogger("openpi_b1k.serving.server").removeHandler(handler)


def test_a_hundred_connections_at_once():
    policy = FakePolicy()

    def episode(value):
        with client(port) as one:
            one.reset()
            return np.stack([one.act(observation(value)) for _ in range(HORIZON)])

    with serving(policy) as port, concurrent.futures.ThreadPoolExecutor(100) as threads:
        for value, actions in enumerate(threads.map(episode, range(100))):
            np.testing.assert_array_equal(actions, [expected(value, step) for step in range(HORIZON)])


def test_timing_is_told_in_milliseconds_and_the_total_from_the_second_reply_on():
    with serving(FakePolicy()) as port, raw_connection(port) as connection:
        first, second = (ask(connection, observation(1))["server_timing"] for _ in range(2))
    stages = ["decode_ms", "infer_ms", "model_ms", "post_ms", "preprocess_ms", "queue_wait_ms"]
    assert sorted(first) == stages
    assert sorted(second) == sorted([*stages, "prev_total_ms"])
    assert all(isinstance(value, float) and value >= 0 for value in (*first.values(), *second.values()))
    parts = sum(first[name] for name in ("queue_wait_ms", "preprocess_ms", "model_ms", "post_ms"))
    assert 0 < parts <= first["infer_ms"] <= second["prev_total_ms"]
    assert second["model_ms"] == second["preprocess_ms"] == 0


def test_the_greeting_is_the_metadata():
    with serving(FakePolicy(), metadata={"checkpoint": "x"}) as port, client(port) as one:
        assert one.metadata == {"checkpoint": "x"}


def test_prompts_by_the_client_by_a_schedule_and_fixed():
    def told(book, *messages):
        policy = FakePolicy()
        with serving(policy, prompts=book, execution=ExecutionConfig(execution_horizon=2)) as port, client(port) as one:
            for message in messages:
                one.act(message)
        return [prompt for batch in policy.batches for _, prompt in batch]

    schedule = {"can_meat": (Entry(3, "Open the jar."), Entry(None, "Close it."))}
    meat = [observation(task=4)] * 6
    assert told(PromptBook(schedule=schedule), *meat) == ["Open the jar."] * 2 + ["Close it."]
    assert told(PromptBook(schedule=schedule), observation(task=4) | {"prompt": "Wait."}) == ["Wait."]
    assert told(PromptBook(fixed="Dance.", schedule=schedule), observation(task=4) | {"prompt": "Wait."}) == ["Dance."]
    both = stacked(observation(task=0), observation(task=4))
    assert told(PromptBook(), both | {"prompt": ["One.", "Two."]}) == ["One.", "Two."]


def test_an_execution_that_does_not_fit_is_refused_at_the_start():
    setup = Setup(fakes.policies(FakePolicy()), execution=ExecutionConfig(execution_horizon=HORIZON + 1))
    with pytest.raises(ValueError, match="execution_horizon must lie in"), serving_in_thread(setup):
        pass


def test_the_client_is_told_why():
    with serving(FakePolicy()) as port, client(port) as one, pytest.raises(PolicyError, match="must be finite"):
        one.act(observation(np.nan))
