"""Chunks computed while their environment goes on: first with a model that answers when told to, then over loopback."""

import asyncio
import collections

import numpy as np
import pytest

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving.answers import NO_CALL, Answers
from openpi_b1k.serving.batching import Chunk, Timing
from openpi_b1k.serving.chunking import make_executor
from openpi_b1k.serving.continuing import RealTimeGuidance
from openpi_b1k.serving.policies import Policies, Profile
from openpi_b1k.serving.prompts import PromptBook
from openpi_b1k.serving.protocol import pack, unpack
from openpi_b1k.serving.requests import parse
from openpi_b1k.serving.sessions import Session
from tests.serving.fakes import (
    HORIZON,
    PROMPTS,
    ROBOT,
    FakePolicy,
    SourceConfig,
    expected,
    observation,
    raw_connection,
    serving,
    stacked,
)

AH, EXECUTED = 8, 3
REAL_TIME = ExecutionConfig("real_time", execution_horizon=EXECUTED)
GUIDANCE = RealTimeGuidance(5.0)
TIMING = Timing(1.0, 2.0, 3.0, 4.0)


def chunk_seen_at(step, environment=0):
    """Returns a chunk whose first entry is the step each action is for, and whose second that of the observation."""
    chunk = np.zeros((AH, ACTION.size), np.float32)
    chunk[:, 0], chunk[:, 1], chunk[:, 2] = step + np.arange(AH), step, environment
    return chunk


class Model:
    """Stands in for the batcher: a question stays open until `answer` or `fail`. Values of observations are steps."""

    def __init__(self):
        self.asked = collections.deque()
        """(sample, future) of open questions."""
        self.samples = []

    def submit(self, name, samples, client):
        del client
        assert name == "fake"
        futures = [asyncio.get_running_loop().create_future() for _ in samples]
        self.asked += zip(samples, futures, strict=True)
        self.samples += samples
        return futures

    def answer(self, num=None):
        for _ in range(len(self.asked) if num is None else num):
            sample, future = self.asked.popleft()
            step, environment = (int(value) for value in sample["proprio"][:2])
            future.set_result(Chunk(chunk_seen_at(step, environment), TIMING))

    def fail(self, error):
        self.asked.popleft()[1].set_exception(error)


class Play:
    """One connection to `Answers`."""

    def __init__(self, execution=REAL_TIME, num_environments=1):
        self.model = Model()
        profile = Profile("fake", PROMPTS, SourceConfig(), ROBOT, AH)
        self.answers = Answers(
            Policies({"fake": profile}, lambda name: FakePolicy()),
            self.model,
            PromptBook(),
            lambda profile: make_executor(execution, ACTION, AH),
            {"fake": GUIDANCE if execution.kind == "real_time" else None},
        )
        self.session = Session("owner")
        self.num_environments = num_environments

    def start(self, step, tasks=None, num_actions=None):
        """Returns the answer to come to observations made at `step`."""
        tasks = tasks or [0] * self.num_environments
        seen = [observation(step, task=task) for task in tasks]
        for i, one in enumerate(seen):
            one["robot_r1::proprio"][1] = i
        message = stacked(*seen) | ({"__action_chunk_size__": num_actions} if num_actions else {})
        return asyncio.create_task(self.answers.answer(self.session, parse(message)))

    async def at_once(self, step, **settings):
        """Returns the answer to observations made at `step`, for which the model need not be waited for."""
        task = self.start(step, **settings)
        await settle()
        assert task.done()
        return task.result()

    async def waited_for(self, step, **settings):
        """Returns the answer to observations made at `step`, which has to wait for the model."""
        task = self.start(step, **settings)
        await settle()
        assert not task.done()
        self.model.answer()
        return await task


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def told(answer, environment=0):
    """Returns the step that an action is for, and that of the observation it was decided upon."""
    action = answer.reply["action"][environment]
    assert action[2] == environment
    return tuple(action[:2].tolist())


def test_the_plan_goes_on_while_the_next_chunk_is_computed():
    async def scenario():
        play = Play()
        first = await play.waited_for(0)
        assert (told(first), first.timing) == ((0, 0), TIMING)
        answers = [await play.at_once(step) for step in (1, 2, 3, 4)]
        assert [told(one) for one in answers] == [(1, 0), (2, 0), (3, 0), (4, 0)]
        assert len(play.model.asked) == 1  # at step 3, and at step 4 not again
        assert all(one.timing == NO_CALL for one in answers)
        play.model.answer()
        fifth = await play.at_once(5)
        assert (told(fifth), fifth.timing) == ((5, 3), TIMING)
        assert len(play.model.asked) == 0
        assert told(await play.at_once(6)) == (6, 3)
        assert len(play.model.asked) == 1  # three steps after the observation, not after the chunk

    asyncio.run(scenario())


def test_a_late_chunk_is_waited_for_when_the_plan_has_ended_and_asked_for_no_second_time():
    async def scenario():
        play = Play()
        await play.waited_for(0)
        for step in range(1, AH):
            assert told(await play.at_once(step)) == (step, 0)
        [(sample, _)] = play.model.asked
        assert sample["proprio"][0] == EXECUTED
        late = await play.waited_for(AH)
        assert told(late) == (AH, EXECUTED)
        [(sample, _)] = play.model.asked  # due again at once, of the newest observation
        assert sample["proprio"][0] == AH

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_no_action_is_handed_out_twice_or_left_out_whatever_the_delays(seed):
    """Three environments; every question is answered after a random number of requests, or when it has to be."""

    async def scenario():
        random, play, handed_out, ages = np.random.default_rng(seed), Play(num_environments=3), [], {}
        for step in range(60):
            task = play.start(step)
            await settle()
            if not task.done():
                play.model.answer()
            answer = await task
            handed_out.append(answer.reply["action"])
            for i in range(3):
                assert told(answer, i)[0] == step
            assert len({int(sample["proprio"][1]) for sample, _ in play.model.asked}) == len(play.model.asked)
            for sample, _ in play.model.asked:
                ages.setdefault(id(sample), int(random.integers(0, AH)))
            while play.model.asked and ages[id(play.model.asked[0][0])] <= step - play.model.asked[0][0]["proprio"][0]:
                play.model.answer(1)
        return handed_out, play.model.samples

    handed_out, samples = asyncio.run(scenario())
    assert len({action[0, 1] for action in handed_out}) > 8  # chunks followed each other
    for sample in samples[3:]:  # what each chunk was to agree with is what was executed, from its observation on
        step, i = (int(value) for value in sample["proprio"][:2])
        known = sample["continuation"].actions
        assert sample["guidance"] is GUIDANCE
        assert 1 <= sample["continuation"].num_fixed <= len(known)
        changed = [t for t in range(len(known)) if step + t < 60 and handed_out[step + t][i, 1] != known[t, 1]]
        executed = min([*changed, len(known), 60 - step])
        assert executed >= 1
        for t in range(executed):
            np.testing.assert_array_equal(known[t], handed_out[step + t][i])


def test_the_delay_measures_itself():
    async def scenario():
        play = Play()
        await play.waited_for(0)
        for step in range(1, 4):
            await play.at_once(step)
        assert play.model.asked[0][0]["continuation"].num_fixed == 1  # the action of this reply
        await play.at_once(4)
        await play.at_once(5)
        play.model.answer()
        await play.at_once(6)  # three steps after the observation: there, and another due
        [(sample, _)] = play.model.asked
        assert (sample["continuation"].num_fixed, sample["continuation"].actions[0, 0]) == (3, 6)

    asyncio.run(scenario())


def test_a_failure_is_told_with_the_first_request_after_it_unless_the_episode_is_over():
    async def scenario(is_reset):
        play = Play()
        await play.waited_for(0)
        for step in (1, 2, 3):
            await play.at_once(step)
        play.model.fail(ValueError("state must be finite"))
        if is_reset:
            play.session.reset()
            assert told(await play.waited_for(0)) == (0, 0)
            return
        with pytest.raises(ValueError, match="state must be finite"):
            await play.at_once(4)

    asyncio.run(scenario(is_reset=False))
    asyncio.run(scenario(is_reset=True))


def test_what_an_observation_lacks_is_told_to_the_request_that_has_it():
    async def scenario():
        play = Play()
        await play.waited_for(0)
        blind = {key: value for key, value in observation(1).items() if not key.endswith("::rgb")}
        for _ in range(2):
            await play.answers.answer(play.session, parse(stacked(blind)))
        with pytest.raises(KeyError, match="the observation has no"):
            await play.answers.answer(play.session, parse(stacked(blind)))

    asyncio.run(scenario())


def test_a_chunk_that_comes_after_a_reset_or_another_task_changes_nothing():
    async def scenario(begin_anew):
        play = Play(num_environments=2)
        await play.waited_for(0)
        for step in (1, 2, 3):
            await play.at_once(step)
        assert len(play.model.asked) == 2
        tasks = begin_anew(play.session)
        task = play.start(100, tasks=tasks)
        await settle()
        play.model.answer(2)  # the old questions
        await settle()
        assert not task.done()
        play.model.answer()
        answer = await task
        following = await play.at_once(101, tasks=tasks)
        return told(answer), told(following), told(following, 1)

    assert asyncio.run(scenario(lambda session: session.reset())) == ((100, 100), (101, 100), (101, 100))
    # Only the first environment's task changes: the second one goes on, with the chunk that came meanwhile.
    assert asyncio.run(scenario(lambda session: [4, 0])) == ((100, 100), (101, 100), (5, 3))


def test_replayed_actions_are_fixed_and_the_next_chunk_is_computed_while_they_are_executed():
    async def scenario():
        play = Play()
        first = await play.waited_for(0, num_actions=2)
        assert first.reply["action_chunk"][0, :, 0].tolist() == [0, 1]
        second = await play.at_once(2, num_actions=2)  # its second action is beyond the execution horizon
        assert second.reply["action_chunk"][0, :, 0].tolist() == [2, 3]
        assert play.model.asked[0][0]["continuation"].num_fixed == 2
        play.model.answer()
        third = await play.at_once(4, num_actions=2)
        assert third.reply["action_chunk"][0, :, :2].tolist() == [[4, 2], [5, 2]]
        for step in (6, 8):
            await play.at_once(step, num_actions=2)
        # Steps 10 and 11 are beyond the plan: the open question, asked at step 4, then leads on.
        last = await play.waited_for(10, num_actions=2)
        assert last.reply["action_chunk"][0, :, :2].tolist() == [[10, 4], [11, 4]]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "execution",
    [ExecutionConfig(execution_horizon=EXECUTED), ExecutionConfig("receding_temporal", execution_horizon=EXECUTED)],
    ids=lambda execution: execution.kind,
)
def test_other_kinds_wait_for_the_chunk_that_is_due(execution):
    async def scenario():
        play = Play(execution)
        for step in range(7):
            answer = await (play.waited_for if step % EXECUTED == 0 else play.at_once)(step)
            assert told(answer)[0] == step
            assert play.session.slots[0].pending is None
        assert not any("continuation" in sample for sample in play.model.samples)

    asyncio.run(scenario())


SERVED = ExecutionConfig("real_time", execution_horizon=HORIZON // 2)


def act(connection, step):
    connection.send(pack(observation(step)))
    frame = connection.recv(10)
    assert isinstance(frame, bytes), frame
    return unpack(frame)["action"]


def test_a_server_replies_while_the_model_computes():
    policy = FakePolicy()
    with serving(policy, execution=SERVED) as port, raw_connection(port) as connection:
        np.testing.assert_array_equal([act(connection, 0), act(connection, 1)], [expected(0, 0), expected(0, 1)])
        policy.entered.acquire(timeout=10)
        policy.gate.clear()
        np.testing.assert_array_equal([act(connection, 2), act(connection, 3)], [expected(0, 2), expected(0, 3)])
        assert policy.entered.acquire(timeout=10)
        policy.gate.set()
        np.testing.assert_array_equal(act(connection, 4), expected(2, 2))
    assert [value for [(value, _)] in policy.batches][:2] == [0, 2]


def test_a_connection_that_breaks_meanwhile_is_gone_on_with():
    policy = FakePolicy()
    with serving(policy, execution=SERVED) as port:
        with raw_connection(port) as connection:
            act(connection, 0)
            act(connection, 1)
            policy.entered.acquire(timeout=10)
            policy.gate.clear()
            lost = act(connection, 2)
            assert policy.entered.acquire(timeout=10)
        with raw_connection(port) as connection:
            np.testing.assert_array_equal(act(connection, 2), lost)
            np.testing.assert_array_equal(act(connection, 3), expected(0, 3))
            policy.gate.set()
            np.testing.assert_array_equal(act(connection, 4), expected(2, 2))


def test_a_call_that_fails_meanwhile_ends_its_own_connection_alone():
    policy = FakePolicy()
    with serving(policy, execution=SERVED) as port, raw_connection(port) as bystander, raw_connection(port) as one:
        act(bystander, 7)
        act(one, 0)
        act(one, 1)
        policy.gate.clear()
        act(one, 666)  # what is wrong with it shows in the model
        act(one, 3)
        policy.gate.set()
        one.send(pack(observation(4)))
        assert one.recv(10) == "error: the server failed at this request; its log says why"
        np.testing.assert_array_equal(act(bystander, 7), expected(7, 1))


def test_environments_share_a_call_meanwhile():
    policy = FakePolicy()
    with serving(policy, execution=SERVED) as port, raw_connection(port) as connection:
        for step in range(HORIZON + 1):
            connection.send(pack(stacked(*[observation(step + 10 * i) for i in range(3)])))
            assert isinstance(connection.recv(10), bytes)
    assert [[value for value, _ in batch] for batch in policy.batches][:2] == [[0, 10, 20], [2, 12, 22]]
