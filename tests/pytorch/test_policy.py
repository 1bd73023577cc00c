"""A converted directory acts without JAX, and as the checkpoint it was made of."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows needs torch

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Observation
from openpi_b1k.pytorch import policy as torch_policy
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving.assembly import serving_in_thread
from openpi_b1k.serving.options import Options
from openpi_b1k.serving.policy import dense, stacked
from openpi_b1k.serving.requests import raw_sample
from tests import sample_cases
from tests.pytorch import cases

SERVED = """
import sys
for name in ("jax", "jaxlib", "flax", "orbax"):
    sys.modules[name] = None  # importing it raises
import numpy as np
from openpi_b1k.pytorch import policy
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving.requests import raw_sample
acting = policy.load(sys.argv[1], device="cpu", seed=3)
environment = SampleEnvironment("2025", 0, 0)
sample = raw_sample(environment.observation(), acting.robot, acting.config.data, environment.goal.prompt)
np.save(sys.argv[2], acting.infer([sample]))
"""


@pytest.fixture(scope="module")
def params(sample_checkpoint):
    """Returns random parameters of the checkpoint's model."""
    return cases.random_params(dense(contents.read_config(sample_checkpoint).model))


@pytest.fixture(scope="module")
def directory(sample_checkpoint, params, tmp_path_factory):
    """Returns a converted directory: a checkpoint's files, and the parameters as safetensors."""
    directory = tmp_path_factory.mktemp("converted")
    for name in (contents.CONFIG_FILE, contents.INFO_FILE):
        shutil.copy(sample_checkpoint / name, directory / name)
    shutil.copytree(sample_checkpoint / "assets", directory / "assets")
    cases.write_file(directory, dense(contents.read_config(sample_checkpoint).model), params)
    return directory


def samples(num):
    environments = [SampleEnvironment("2025", 0, episode) for episode in range(num)]
    robot, source = r1pro("like_action"), SourceConfig()
    return [raw_sample(one.observation(), robot, source, one.goal.prompt) for one in environments]


def test_it_acts_without_jax(directory, tmp_path):
    command = [sys.executable, "-c", SERVED, str(directory), str(tmp_path / "chunk.npy")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = torch_policy.load(directory, device="cpu", seed=3).infer(samples(1))
    chunk = np.load(tmp_path / "chunk.npy")
    assert (chunk.shape, chunk.dtype) == ((1, 25, 23), np.float32)
    np.testing.assert_allclose(chunk, expected, atol=1e-6)


def test_seeds_and_calls_draw_new_noise(directory):
    policy, again, other = (torch_policy.load(directory, device="cpu", seed=seed) for seed in (3, 3, 4))
    first = policy.infer(samples(2))
    np.testing.assert_array_equal(again.infer(samples(2)), first)
    assert not np.array_equal(policy.infer(samples(2)), first)
    assert not np.array_equal(other.infer(samples(2)), first)


def test_its_chunks_are_those_of_jax_from_the_same_noise(directory, params):
    policy = torch_policy.load(directory, device="cpu", seed=3, dtype=torch.float32)
    inputs = [policy.prepare(sample) for sample in samples(sample_cases.NUM_EPISODES)]
    config = policy.config.model
    noise = np.random.default_rng(3).standard_normal(
        (len(inputs), config.action_horizon, config.action_dim), np.float32
    )
    model = Model(dataclasses.replace(dense(config), dtype="float32"))
    expected = jax.jit(model.sample_actions, static_argnames="num_flow_steps")(
        params, Observation(**stacked(inputs)), noise, num_flow_steps=config.num_flow_steps
    )
    np.testing.assert_allclose(policy.predict(inputs), expected, rtol=0, atol=5e-5)


def test_it_cannot_continue_chunks_and_a_server_says_so_before_it_listens(directory):
    setup = Options(directory, execution=ExecutionConfig("real_time")).setup(torch_policy.load)
    message = "PyTorch cannot lead a chunk towards known actions: leave out real_time and kept_actions"
    with pytest.raises(ValueError, match=message), serving_in_thread(setup):
        pass


def test_a_directory_without_weights_is_refused(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config at .*config\.json"):
        torch_policy.load(tmp_path / "nowhere")
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*model\.safetensors"):
        torch_policy.load(copy)
