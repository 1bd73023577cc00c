"""The evaluator's loop and its client against servers of a policy that counts: who is asked what, and what fails."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest

from openpi_b1k.evaluation.closed_loop.environments import SampleEpisode, stacked
from openpi_b1k.evaluation.closed_loop.play import Budget, play
from openpi_b1k.evaluation.closed_loop.players import Endpoint, Remote, Replayed, Timings
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sample.world import MAX_STEPS, Expert
from openpi_b1k.serving.client import ConnectionLostError, Patience, PolicyError, QueryTimeoutError
from tests.serving import fakes

IDLE = np.ones(ACTION.size, np.float32)  # never closes a gripper
GIVEN_UP = [ConnectionLostError("gone"), QueryTimeoutError("slow"), PolicyError("odd")]


class Counting:
    """An environment whose observations tell its number, and that remembers what it was told to do."""

    task, prompt = "turning_on_radio", "Turn on the radio."

    def __init__(self, value, max_steps=6, generation="2026"):
        self.value, self.max_steps, self.generation = value, max_steps, generation
        self.actions = []

    @property
    def is_over(self):
        return len(self.actions) >= self.max_steps

    def observation(self):
        return fakes.observation(self.value, self.generation)

    def step(self, action):
        assert not self.is_over
        self.actions.append(action)


class Scripted:
    """A player that takes its actions from a function, and notes what it was shown."""

    needs_observations = True

    def __init__(self, act):
        self.calls, self.groups, self._act = [], [], act

    def reset(self, num_environments):
        self.groups.append(num_environments)

    def act(self, observations):
        self.calls.append(observations)
        return self._act(observations)


class Seen:
    """A witness that keeps all it sees."""

    def __init__(self):
        self.steps = []

    def add(self, observation, action):
        self.steps.append((observation, action))


def experts(episodes):
    each = [Expert(episode.environment.world) for episode in episodes]
    return lambda _: np.stack([expert.action() for expert in each])


def endpoint(port, **options):
    patience = Patience(query_s=30, greeting_s=5, max_reconnects=1)
    return Endpoint("127.0.0.1", port, patience=patience, start_s=0.0, sleep=lambda _: None, **options)


def remote(*endpoints, blind=lambda one: one, timings=None):
    return Remote(endpoints, blind, timings or Timings())


def expected(value, num):
    return [fakes.expected(value, step) for step in range(num)]


def test_the_expert_succeeds_and_scores_by_the_official_rule():
    episodes = [SampleEpisode("2026", 0, number) for number in range(8)]
    assert play(episodes, Scripted(experts(episodes)), [None] * 8) == [None] * 8
    for number, episode in enumerate(episodes):
        rollout = episode.rollout()
        assert (rollout.task, rollout.instance_id, rollout.success) == (episode.task, number, True)
        assert (rollout.q_score, rollout.failure_reason) == (1.0, None)
        assert rollout.steps == rollout.simulator_steps == episode.environment.world.num_steps
        assert rollout.simulator_time == rollout.steps / 30
        assert 0.2 < rollout.normalized_time < 3
        assert rollout.normalized_agent_distance["base"] == float("inf")
        moved = rollout.agent_distance[episode.environment.goal.hand]
        assert rollout.normalized_agent_distance[episode.environment.goal.hand] * moved > 0.05
    assert episodes[3].stem == episodes[3].rollout().stem


def test_a_finished_environment_keeps_sending_its_last_observation_and_is_not_stepped():
    episodes = [SampleEpisode("2026", 0, number) for number in range(2)]
    expert, seen = experts(episodes), [Seen(), Seen()]
    player = Scripted(lambda observations: np.stack([expert(observations)[0], IDLE]))
    assert play(episodes, player, seen) == [None, None]
    steps = episodes[0].environment.world.num_steps
    assert steps < MAX_STEPS == episodes[1].environment.world.num_steps == len(player.calls)
    assert [len(one.steps) for one in seen] == [steps, MAX_STEPS]
    assert (player.groups, {len(call) for call in player.calls}) == ([2], {2})
    last = player.calls[steps][0]
    assert all(call[0] is last for call in player.calls[steps:])
    assert last is not player.calls[steps - 1][0]
    assert episodes[0].pressed is not None


def test_nothing_is_observed_while_nobody_looks():
    episode = SampleEpisode("2025", 0, 0)
    episode.observation = None  # calling it would raise
    assert play([episode], Replayed(np.tile(IDLE, (MAX_STEPS, 1))), [None]) == [None]
    assert episode.environment.world.num_steps == MAX_STEPS


def test_the_budget_counts_the_policys_time_and_a_share_of_the_environments():
    now = [0.0]

    def act(observations):
        now[0] += 0.5
        return np.tile(IDLE, (len(observations), 1))

    def slow(number, max_steps):
        environment = Counting(number, max_steps)
        step = environment.step
        environment.step = lambda action: (now.__setitem__(0, now[0] + 0.8), step(action))
        return environment

    # While n play, a step costs each 0.5 s for the policy and n * 0.8 / n s for the environments, 1.3 s whatever n:
    # 5 s are over with the 4th step, 20 s with the 16th.
    environments = [slow(0, 5), slow(1, 20)]
    failures = play(environments, Scripted(act), [None, None], Budget(clock=lambda: now[0]))
    assert failures == ["group_time_budget_exceeded"] * 2
    assert [len(one.actions) for one in environments] == [4, 16]
    environments = [slow(0, 5), slow(1, 20)]
    assert play(environments, Scripted(act), [None, None], Budget(1.31, lambda: now[0])) == [None, None]
    assert [len(one.actions) for one in environments] == [5, 20]


def test_the_reset_is_on_the_account_too():
    now = [0.0]
    player = Scripted(lambda observations: np.tile(IDLE, (len(observations), 1)))
    player.reset = lambda _: now.__setitem__(0, 7.0)
    assert play([Counting(0, 6)], player, [None], Budget(clock=lambda: now[0])) == ["group_time_budget_exceeded"]


@pytest.mark.parametrize("error", GIVEN_UP, ids=lambda error: type(error).__name__)
def test_an_error_fails_what_is_not_over(error, caplog):
    reasons = {
        ConnectionLostError: "policy_connection_lost",
        QueryTimeoutError: "policy_query_timeout",
        PolicyError: "policy_error",
    }

    def act(observations):
        if len(environments[1].actions) == 3:
            raise error
        return np.tile(IDLE, (len(observations), 1))

    environments = [Counting(0, 2), Counting(1, 6)]
    assert play(environments, Scripted(act), [None, None]) == [None, reasons[type(error)]]
    assert [len(one.actions) for one in environments] == [2, 3]
    assert f"{reasons[type(error)]}: 1 of 2 rollouts are given up: {error}" in caplog.text
    given_up = SampleEpisode("2026", 1, 2).rollout(reasons[type(error)])
    assert (given_up.success, given_up.q_score, given_up.instance_id) == (False, 0.0, 10_002)
    assert given_up.failure_reason == reasons[type(error)]


def test_a_bug_is_no_failure_of_the_policy():
    def act(observations):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        play([Counting(0)], Scripted(act), [None])


def test_observations_are_stacked_as_the_evaluator_does():
    one = stacked([fakes.observation(1.0, "2026") | {"prompt": "a"}])
    assert one["robot_r1::proprio"].shape == (1, 61)
    assert one["task_id"].shape == (1, 1)
    two = stacked([fakes.observation(value, "2026") | {"prompt": text} for value, text in ((1, "a"), (2, "b"))])
    assert two["prompt"] == ["a", "b"]
    assert two["robot_r1::proprio"][:, 0].tolist() == [1, 2]
    assert {value.shape[0] for key, value in two.items() if key != "prompt"} == {2}


@pytest.mark.parametrize("replay", [None, 2, 4])
def test_stacked_environments_get_their_own_actions(replay):
    policy, timings = fakes.FakePolicy(), Timings()
    environments = [Counting(value) for value in (1.0, 2.0, 3.0)]
    with fakes.serving(policy) as port, remote(endpoint(port, replay_chunk_size=replay), timings=timings) as player:
        assert play(environments, player, [None] * 3) == [None] * 3
        assert play([Counting(7.0)], player, [None]) == [None]  # a smaller group on the same connection
    for environment in environments:
        np.testing.assert_array_equal(environment.actions, expected(environment.value, 6))
    assert [len(batch) for batch in policy.batches] == [3, 3, 1, 1]  # chunks of 4 actions for 6 steps, twice
    told = timings.percentiles()
    assert told["reply_ms"]["count"] == told["decode_ms"]["count"] == {None: 12, 2: 6, 4: 4}[replay]
    assert told["model_ms"]["count"] <= 4


def test_the_wire_of_2025_is_unbatched():
    policy, sent = fakes.FakePolicy(), []
    environment = Counting(5.0, generation="2025")

    def blind(observation):
        sent.append(observation)
        return observation

    with fakes.serving(policy) as port, remote(endpoint(port, wire="2025"), blind=blind) as player:
        assert play([environment], player, [None]) == [None]
        with pytest.raises(ValueError, match="1 endpoints cannot serve 2 environments like this"):
            player.reset(2)
    np.testing.assert_array_equal(environment.actions, expected(5.0, 6))
    assert [one["robot_r1::proprio"].shape for one in sent] == [(256,)] * 6


def test_one_endpoint_for_each_environment():
    policies = [fakes.FakePolicy(), fakes.FakePolicy()]
    environments = [Counting(1.0), Counting(2.0)]
    with contextlib.ExitStack() as exits:
        ports = [exits.enter_context(fakes.serving(policy)) for policy in policies]
        player = exits.enter_context(remote(*map(endpoint, ports)))
        assert play(environments, player, [None, None]) == [None, None]
        assert play([Counting(3.0)], player, [None]) == [None]  # the last group may be smaller
    for environment in environments:
        np.testing.assert_array_equal(environment.actions, expected(environment.value, 6))
    assert [[value for [(value, _)] in policy.batches] for policy in policies] == [[1, 1, 3, 3], [2, 2]]


def test_after_an_error_the_next_group_has_a_new_connection():
    policy = fakes.FakePolicy()
    with fakes.serving(policy) as port, remote(endpoint(port)) as player:
        assert play([Counting(666.0), Counting(1.0)], player, [None, None]) == ["policy_error"] * 2
        fine = Counting(2.0)
        assert play([fine], player, [None]) == [None]
    np.testing.assert_array_equal(fine.actions, expected(2.0, 6))


def test_a_server_that_goes_away_fails_this_group_and_all_others_and_is_waited_for_once():
    policy, waits = fakes.FakePolicy(), []
    with contextlib.ExitStack() as exits:
        server = exits.enter_context(contextlib.ExitStack())
        port = server.enter_context(fakes.serving(policy))
        patient = dataclasses.replace(endpoint(port), start_s=9.0, sleep=waits.append)
        player = exits.enter_context(remote(patient))
        leaving = Counting(1.0)
        step = leaving.step
        leaving.step = lambda action: (step(action), server.close() if len(leaving.actions) == 2 else None)
        assert play([leaving], player, [None]) == ["policy_connection_lost"]
        assert len(leaving.actions) == 2
        assert waits == [5.0]  # before the one reconnect
        assert play([Counting(1.0)], player, [None]) == ["policy_connection_lost"]
        assert waits == [5.0, 5.0, 5.0]  # until it would be ready
        assert play([Counting(1.0)], player, [None]) == ["policy_connection_lost"]
        assert waits == [5.0, 5.0, 5.0]
        with pytest.raises(ConnectionLostError, match=f"no server at 127.0.0.1:{port} was ready within 9 s; start one"):
            player.reset(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            np.full((2, 23), np.nan, np.float32),
            "2 finite actions of 23 entries; got shape [2, 23] with NaN or infinity",
        ),
        (np.zeros((1, 23), np.float32), "2 finite actions of 23 entries; got shape [1, 23]"),
        (np.zeros((2, 22), np.float32), "2 finite actions of 23 entries; got shape [2, 22]"),
    ],
)
def test_an_answer_that_is_no_actions_fails_the_group(answer, message):
    class Odd:
        is_replaying, last_timing, is_closed = False, {}, False

        def reset(self):
            pass

        def act(self, observation):
            return answer

        def close(self):
            self.is_closed = True

    class OddEndpoint:
        wire = "2026"

        def connect(self):
            return client

    client = Odd()
    with remote(OddEndpoint()) as player:
        player.reset(2)
        with pytest.raises(PolicyError, match=re.escape(message)):
            player.act([fakes.observation(1.0, "2026")] * 2)
        assert client.is_closed
