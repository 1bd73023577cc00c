"""From depth videos to a checkpoint and back to the sample world: a policy that sees point clouds acts on them."""

import dataclasses
import json

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.evaluation.closed_loop.ablations import black
from openpi_b1k.evaluation.closed_loop.sample_world import evaluate
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.requests import raw_sample
from tests import sample_cases


@pytest.fixture(scope="module")
def checkpoint(sample_root, tmp_path_factory):
    """Returns a checkpoint of a tiny model after one step with depth and RGB."""
    config = sample_cases.tiny_config(tmp_path_factory.mktemp("rgbd"), sample_root("2026", "depth"), "2026")
    transforms = dataclasses.replace(config.data.transforms, depth_stride=90)
    data = dataclasses.replace(config.data, modalities=("rgb", "depth"), transforms=transforms)
    config = dataclasses.replace(config, data=data, model=dataclasses.replace(config.model, point_clouds=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENPI_B1K_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return sample_cases.train(config)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


def test_the_checkpoint_says_what_openpi_cannot_read(checkpoint):
    [part] = json.loads((checkpoint / contents.INFO_FILE).read_text())["beyond_openpi"]
    assert part.startswith("parameters point_cloud/**")


def sample_of(policy, environment):
    """Returns an environment's raw sample."""
    goal = environment.goal
    return raw_sample(environment.observation(), policy.robot, policy.config.data, policy.prompts[goal.task_name])


def test_the_policy_acts_on_the_environments_depth(checkpoint):
    assert len(evaluate(checkpoint, episodes=sample_cases.NUM_EPISODES, execution_horizon=25).outcomes) == 4
    environments = [SampleEnvironment("2026", 0, episode) for episode in range(sample_cases.NUM_EPISODES)]
    policy, same = jax_backend.load(checkpoint), jax_backend.load(checkpoint)
    samples = [sample_of(policy, environment) for environment in environments]
    farther = [sample | {"depth": {"head": sample["depth"]["head"] + 1.0}} for sample in samples]
    assert not np.array_equal(policy.infer(samples), same.infer(farther))


def test_without_depth_it_refuses(checkpoint):
    policy = jax_backend.load(checkpoint)
    sample = sample_of(policy, SampleEnvironment("2026", 0, 0))
    del sample["depth"]
    with pytest.raises(KeyError, match="no depth of camera 'head'"):
        policy.infer([sample])


def test_the_image_ablation_blanks_depth_too(checkpoint):
    policy = jax_backend.load(checkpoint)
    observation = black(SampleEnvironment("2026", 0, 0).observation())
    sample = raw_sample(observation, policy.robot, policy.config.data, "Press it.")
    assert not sample["depth"]["head"].any()
    assert not any(image.any() for image in sample["images"].values())
