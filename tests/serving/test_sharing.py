"""Real networks behind the server: what is called and compiled, and which checkpoint acts."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend, protocol, requests
from openpi_b1k.serving.assembly import serving_in_thread
from openpi_b1k.serving.options import Options
from tests import sample_cases
from tests.serving.fakes import client, raw_connection, stacked

NUM = 16


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


@pytest.fixture
def counted(sample_checkpoint, monkeypatch):
    """A server's options, the batch size of each call of the network, and one entry per program that was traced."""
    calls, traced = [], []
    trace = jax_backend.Model.sample_actions

    def sample_actions(self, params, observation, *rest, **named):
        traced.append(observation.state.shape[0])
        return trace(self, params, observation, *rest, **named)

    def load(path):
        policy = jax_backend.load(path, seed=3)
        sample = policy.backend.sample
        monkeypatch.setattr(policy.backend, "sample", lambda inputs: (calls.append(len(inputs)), sample(inputs))[1])
        return policy

    monkeypatch.setattr(jax_backend.Model, "sample_actions", sample_actions)
    jax_backend.compiled_sampler.cache_clear()
    yield Options(sample_checkpoint, num_envs=(NUM,)).setup(load), calls, traced
    jax_backend.compiled_sampler.cache_clear()


def seen(num=NUM):
    return [SampleEnvironment("2025", 0, episode).observation() for episode in range(num)]


def test_sixteen_environments_of_one_connection_are_one_call_of_a_program_compiled_before(counted):
    setup, calls, traced = counted
    with serving_in_thread(setup) as port, client(port) as one:
        assert (calls, traced) == ([NUM], [NUM])  # the warm-up's
        for _ in range(2):
            one.reset()
            assert one.act(stacked(*seen())).shape == (NUM, 23)
    assert calls == [NUM] * 3
    assert traced == [NUM]


def test_sixteen_connections_of_one_environment_are_one_call_too(counted):
    setup, calls, traced = counted
    setup = dataclasses.replace(setup, window_s=60.0)  # over as soon as all have asked
    with serving_in_thread(setup) as port, contextlib.ExitStack() as exits:
        calls.clear()
        connections = [exits.enter_context(raw_connection(port)) for _ in range(NUM)]
        for connection, observation in zip(connections, seen(), strict=True):
            connection.send(protocol.pack(observation))
        actions = [protocol.unpack(connection.recv(60))["action"] for connection in connections]
    assert len({action.tobytes() for action in actions}) == NUM
    assert calls == [NUM]
    assert traced == [NUM]


def test_checkpoints_by_task_over_the_wire(tmp_path, sample_checkpoint):
    """Two directories whose networks start from different noise; one is in memory at a time, and begins anew."""
    shutil.copytree(sample_checkpoint, tmp_path / "x")
    shutil.copytree(sample_checkpoint, tmp_path / "y")
    names = list(contents.read_assets(sample_checkpoint).prompts)
    path = tmp_path / "checkpoints.json"
    entries = {"x": {"path": "x", "tasks": names[:1]}, "y": {"path": "y", "tasks": names[1:]}}
    path.write_text(json.dumps({"checkpoints": entries}))

    def load(directory):
        return jax_backend.load(directory, seed={"x": 1, "y": 2}[directory.name])

    environments = [SampleEnvironment("2025", 0, episode) for episode in range(2)]  # of the first two tasks
    x, y = load(tmp_path / "x"), load(tmp_path / "y")
    at_x, at_y = (
        requests.raw_sample(one.observation(), x.robot, x.config.data, one.goal.prompt) for one in environments
    )
    first_x, second_x, first_y = (policy.infer([at])[0, 0] for policy, at in ((x, at_x), (x, at_x), (y, at_y)))
    setup = Options(checkpoints_by_task=path, num_envs=(1,)).setup(load)
    with serving_in_thread(setup) as port, client(port) as one, client(port) as other:
        np.testing.assert_array_equal(one.act(environments[0].observation()), second_x)  # the first was the warm-up's
        np.testing.assert_array_equal(other.act(environments[1].observation()), first_y)
        one.reset()
        np.testing.assert_array_equal(one.act(environments[0].observation()), first_x)  # loaded anew
