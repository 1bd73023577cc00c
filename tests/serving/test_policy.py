import dataclasses
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.config import serialize
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Observation
from openpi_b1k.robots.r1pro import ACTION, r1pro
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.policy import OBSERVED, dense, stacked
from openpi_b1k.serving.requests import raw_sample
from tests import sample_cases

SOURCE = SourceConfig()
DEPTH = "robot_r1::robot_r1:zed_link:Camera:0::depth_linear"


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


def samples(generation="2025", num=sample_cases.NUM_EPISODES):
    environments = [SampleEnvironment(generation, 0, episode) for episode in range(num)]
    robot = r1pro("like_action")
    return [raw_sample(one.observation(), robot, SOURCE, one.goal.prompt) for one in environments]


def test_a_chunk_per_sample_in_the_robots_units_the_same_for_a_seed(sample_checkpoint):
    policy = jax_backend.load(sample_checkpoint, seed=3)
    before = samples()
    first, second = policy.infer(before), policy.infer(before)
    assert (first.shape, first.dtype) == ((sample_cases.NUM_EPISODES, 25, ACTION.size), np.float32)
    assert np.isfinite(first).all()
    assert not np.array_equal(first, second)  # new noise for every call
    again = jax_backend.load(sample_checkpoint, seed=3)
    np.testing.assert_array_equal(again.infer(samples()), first)
    np.testing.assert_array_equal(again.infer(samples()), second)
    assert not np.array_equal(jax_backend.load(str(sample_checkpoint), seed=4).infer(samples()), first)
    for sample, untouched in zip(before, samples(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, sample, untouched)


def test_images_resized_before_make_the_same_model_input(sample_checkpoint):
    policy = jax_backend.load(sample_checkpoint)
    random = np.random.default_rng(0)
    [sample] = samples(num=1)
    sample["images"] = {name: random.integers(0, 256, (99, 77, 3), np.uint8) for name in sample["images"]}
    resized = sample | {"images": {name: policy.resize(image) for name, image in sample["images"].items()}}
    jax.tree.map(np.testing.assert_array_equal, policy.prepare(resized), policy.prepare(sample))


def test_the_chunk_is_the_models_unnormalised_and_absolute(sample_checkpoint):
    """The output by hand: clip nothing, quantiles back, then arms added to the state of the first step."""
    policy = jax_backend.load(sample_checkpoint)
    assert policy.config.data.transforms.delta_fields == ("left_arm", "right_arm")
    normalized = np.full((1, 25, 32), 0.5, np.float32)
    policy.backend = types.SimpleNamespace(sample=lambda inputs: normalized)  # stands in for the network
    [chunk] = policy.infer(samples(num=1))
    stats = contents.read_assets(sample_checkpoint).norm_stats.actions
    expected = stats.q01 + 0.75 * (stats.q99 - stats.q01)
    is_constant = stats.q99 - stats.q01 < 1e-4
    expected[is_constant] = stats.q01[is_constant] + 1.5
    world = SampleEnvironment("2025", 0, 0).world
    for hand in ("left", "right"):
        expected[ACTION.slice(f"{hand}_arm")] += world.arms[hand]
    np.testing.assert_allclose(chunk, np.tile(expected, (25, 1)), atol=1e-5)


def test_both_generations_act_on_one_state(sample_checkpoint):
    chunks = [jax_backend.load(sample_checkpoint).infer(samples(generation)) for generation in ("2025", "2026")]
    np.testing.assert_array_equal(*chunks)


def test_it_knows_its_prompts_and_can_act_with_another_network(sample_checkpoint):
    policy = jax_backend.load(sample_checkpoint)
    assert policy.prompts["press_red_button_with_left_gripper"] == "Press the red button with the left gripper."
    assert len(policy.prompts) == 4
    first = policy.infer(samples())
    other = jax_backend.load(sample_checkpoint)
    model = dense(policy.config.model)
    other.backend = jax_backend.JaxBackend(model, Model(model).init_params(jax.random.key(1)))
    assert not np.array_equal(other.infer(samples()), first)


def test_a_missing_camera_is_refused(sample_checkpoint):
    policy = jax_backend.load(sample_checkpoint)
    [sample] = samples(num=1)
    del sample["images"]["left_wrist"]
    with pytest.raises(KeyError, match="no image of camera 'left_wrist'; there are: head, right_wrist"):
        policy.infer([sample])
    observation = SampleEnvironment("2025", 0, 0).observation()
    del observation["robot_r1::robot_r1:zed_link:Camera:0::rgb"]
    with pytest.raises(KeyError, match=r"the observation has no 'robot_r1::robot_r1:zed.*::rgb'; it has: robot_r1"):
        raw_sample(observation, policy.robot, SOURCE, "Press.")
    with pytest.raises(KeyError, match="the observation has no 'robot_r1::proprio'"):
        raw_sample({}, policy.robot, SOURCE, "Press.")


def test_no_checkpoint_is_refused(tmp_path, sample_checkpoint):
    with pytest.raises(FileNotFoundError, match=r"no config at .*nowhere/config\.json"):
        jax_backend.load(tmp_path / "nowhere")
    run = re.escape(str(sample_checkpoint.parent))
    with pytest.raises(FileNotFoundError, match=rf"give one of its checkpoints \(1\), such as {run}/1$"):
        jax_backend.load(sample_checkpoint.parent)
    copy = shutil.copytree(sample_checkpoint, tmp_path / "1")
    (copy / contents.TOKENIZER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*tokenizer\.model; a checkpoint of openpi_b1k has one"):
        jax_backend.load(copy)


def test_a_config_of_another_model_is_refused(tmp_path, sample_checkpoint):
    copy = shutil.copytree(sample_checkpoint, tmp_path / "1")
    config = contents.read_config(copy)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=28))
    (copy / contents.CONFIG_FILE).write_text(serialize.to_json(config))
    with pytest.raises(ValueError, match=re.escape("of another size: vision/pos_embedding is (1, 1, 32)")):
        jax_backend.load(copy)


def test_a_sample_of_an_evaluators_observation():
    observation = SampleEnvironment("2026", 0, 1).observation()
    robot = r1pro("like_action")
    sample = raw_sample(observation, robot, SourceConfig(cameras=("head", "right_wrist")), "Press.")
    assert sorted(sample) == ["images", "prompt", "proprio"]
    assert (sample["proprio"].shape, sample["proprio"].dtype) == ((61,), np.float32)
    assert list(sample["images"]) == ["head", "right_wrist"]
    for name, image in sample["images"].items():
        rgba = observation[f"{robot.camera(name).simulator_name}::rgb"]
        np.testing.assert_array_equal(image, rgba[..., :3])


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_depth_is_taken_where_the_policy_sees_it(generation):
    observation, robot = SampleEnvironment(generation, 0, 1).observation(), r1pro("like_action")
    source = SourceConfig(modalities=("rgb", "depth", "segmentation"))
    sample = raw_sample(observation, robot, source, "Press.")
    assert sorted(sample) == ["depth", "images", "prompt", "proprio"]
    assert list(sample["depth"]) == ["head"]
    np.testing.assert_array_equal(sample["depth"]["head"], observation[DEPTH])
    assert sample["depth"]["head"].dtype == np.float32
    del observation[DEPTH]
    with pytest.raises(KeyError, match="the observation has no 'robot_r1::robot_r1:zed_link:Camera:0::depth_linear'"):
        raw_sample(observation, robot, source, "Press.")


def test_its_parts_are_what_it_does_at_once(sample_checkpoint):
    at_once = jax_backend.load(sample_checkpoint, seed=5).infer(samples())
    policy = jax_backend.load(sample_checkpoint, seed=5)
    inputs = [policy.prepare(sample) for sample in samples()]
    chunks = policy.predict(inputs)
    assert chunks.shape == (sample_cases.NUM_EPISODES, 25, 32)
    for chunk, one, expected in zip(chunks, inputs, at_once, strict=True):
        np.testing.assert_array_equal(policy.finish(chunk, one), expected)


def test_samples_become_one_batch():
    one = {"images": {"head": np.zeros((2, 2, 3)), "wrist": np.ones((2, 2, 3))}, "state": np.arange(3), "raw_state": 1}
    batch = stacked([one, one | {"state": np.arange(3) + 5}])
    assert sorted(batch) == ["images", "state"]  # what the network does not see is left out
    np.testing.assert_array_equal(batch["state"], [[0, 1, 2], [5, 6, 7]])
    assert {name: image.shape for name, image in batch["images"].items()} == {
        "head": (2, 2, 2, 3),
        "wrist": (2, 2, 2, 3),
    }
    assert tuple(field.name for field in dataclasses.fields(Observation)) == OBSERVED


def test_a_policy_without_a_backend_loads_no_jax():
    code = "import sys, openpi_b1k.serving.policy; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert not {"jax", "jaxlib", "flax", "orbax", "torch"} & set(done.stdout.split())
