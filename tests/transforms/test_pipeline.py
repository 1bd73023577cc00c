import copy
import dataclasses
import pickle
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from openpi_b1k.config.data import SAMPLE_TOKENIZER, SourceConfig, TransformConfig
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.geometry import depth_to_points
from openpi_b1k.transforms.pipeline import input_pipeline, output_pipeline, statistics_pipeline
from openpi_b1k.transforms.segmentation import labels_to_image

MODEL = ModelConfig(
    vision=SIGLIP_TINY, vlm=GEMMA_TINY, action_expert=GEMMA_TINY, vocab_size=1024, image_size=28, action_horizon=6,
    max_prompt_tokens=64,
)  # fmt: skip
DELTAS = ("torso", "left_arm", "right_arm")
CONFIG = TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=DELTAS, clip_normalized=None)
CONFIGS = strategies.builds(
    dataclasses.replace,
    strategies.just(CONFIG),
    state_layout=strategies.sampled_from(["grippers_last", "like_action"]),
    delta_fields=strategies.sampled_from([(), DELTAS]),
    normalization=strategies.sampled_from(["quantile", "zscore"]),
    clip_normalized=strategies.sampled_from([None, 5.0]),
    mask_padding=strategies.booleans(),
)
CHOSEN_CAMERAS = strategies.sampled_from([("head",), ("head", "left_wrist", "right_wrist"), ("right_wrist", "head")])


def source(transforms: TransformConfig, **changes) -> SourceConfig:
    return SourceConfig(transforms=transforms, **changes)


def raw_sample(seed: int = 0, proprio_size: int = 256) -> dict:
    generator = np.random.default_rng(seed)
    return {
        "proprio": generator.normal(size=proprio_size).astype(np.float32),
        "images": {
            "head": generator.integers(0, 256, (40, 40, 3), np.uint8),
            "left_wrist": generator.integers(0, 256, (28, 28, 3), np.uint8),
            "right_wrist": generator.integers(0, 256, (20, 30, 3), np.uint8),
        },
        "prompt": "Press the red button with the left gripper.",
        "actions": generator.normal(size=(6, 23)).astype(np.float32),
        "is_pad": np.array([False] * 4 + [True] * 2),
        "episode": 10, "frame": 3, "task": 0,
    }  # fmt: skip


def freeze(value) -> None:
    """Makes every array in a nested dict refuse to be written to."""
    if isinstance(value, dict):
        for item in value.values():
            freeze(item)
    elif isinstance(value, np.ndarray):
        value.flags.writeable = False


def assert_equal(left, right) -> None:
    if isinstance(left, dict):
        assert list(left) == list(right)
        for name in left:
            assert_equal(left[name], right[name])
    else:
        np.testing.assert_array_equal(left, right)


PROPRIO_SIZES = strategies.sampled_from([256, 61, 25])


@hypothesis.given(config=CONFIGS, cameras=CHOSEN_CAMERAS, seed=strategies.integers(0, 99), proprio_size=PROPRIO_SIZES)
@hypothesis.settings(max_examples=40)
def test_input_is_unchanged_and_output_is_the_contract(norm_stats, tokenizer, config, cameras, seed, proprio_size):
    pipeline = input_pipeline(source(config, cameras=cameras), MODEL, r1pro(config.state_layout), norm_stats, tokenizer)
    sample = raw_sample(seed, proprio_size)
    before = copy.deepcopy(sample)
    freeze(sample)
    result = pipeline(sample)
    assert_equal(sample, before)
    assert list(result["images"]) == list(result["image_masks"]) == list(cameras)
    assert {image.shape for image in result["images"].values()} == {(28, 28, 3)}
    shapes = {name: (value.dtype.name, value.shape) for name, value in result.items() if isinstance(value, np.ndarray)}
    assert shapes == {
        "state": ("float32", (32,)), "raw_state": ("float32", (23,)),
        "prompt_tokens": ("int32", (64,)), "prompt_mask": ("bool", (64,)),
        "actions": ("float32", (6, 32)), "action_mask": ("bool", (6, 32)),
    }  # fmt: skip
    assert_equal(pipeline(sample), result)


@hypothesis.given(config=CONFIGS, seed=strategies.integers(0, 99))
@hypothesis.settings(max_examples=30)
def test_output_of_input_gives_the_actions_back(norm_stats, tokenizer, config, seed):
    config = dataclasses.replace(config, clip_normalized=None)
    robot, sample = r1pro(config.state_layout), raw_sample(seed)
    result = input_pipeline(source(config), MODEL, robot, norm_stats, tokenizer)(sample)
    back = output_pipeline(config, MODEL, robot, norm_stats)(
        {"actions": result["actions"], "raw_state": result["raw_state"]}
    )
    assert back["actions"].dtype == np.float32
    np.testing.assert_allclose(back["actions"], sample["actions"], atol=5e-6)


def test_the_order_by_hand(norm_stats, tokenizer):
    sample, robot = raw_sample(), r1pro("like_action")
    result = input_pipeline(source(CONFIG), MODEL, robot, norm_stats, tokenizer)(sample)
    proprio = sample["proprio"]
    left, right = proprio[193] + proprio[194], proprio[232] + proprio[233]
    state = np.array([*proprio[253:256], *proprio[236:240], *proprio[158:165], left, *proprio[197:204], right])
    is_joint = np.array([0] * 3 + [1] * 4 + [1] * 7 + [0] + [1] * 7 + [0])
    actions = sample["actions"] - is_joint * state
    q01, span = norm_stats.state.q01, norm_stats.state.q99 - norm_stats.state.q01 + 1e-6
    np.testing.assert_array_equal(result["raw_state"], state)
    np.testing.assert_allclose(result["state"][:23], (state - q01) / span * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(result["actions"][:, :23], (actions - q01) / span * 2 - 1, atol=1e-6)
    tokens, mask = tokenizer.tokenize(sample["prompt"], (state - q01) / span * 2 - 1, 64)
    np.testing.assert_array_equal(result["prompt_tokens"], tokens)
    np.testing.assert_array_equal(result["prompt_mask"], mask)
    np.testing.assert_array_equal(result["action_mask"].sum(1), [23] * 4 + [0] * 2)


def test_pi0_reads_the_prompt_alone_and_is_given_the_same_state(norm_stats, tokenizer):
    robot = r1pro("like_action")
    pi05, pi0 = (
        input_pipeline(source(CONFIG), dataclasses.replace(MODEL, kind=kind), robot, norm_stats, tokenizer)
        for kind in ("pi05", "pi0")
    )
    sample = raw_sample()
    reads, is_given = pi05(sample), pi0(sample)
    ids = tokenizer.encode(sample["prompt"], None)
    np.testing.assert_array_equal(is_given["prompt_tokens"][is_given["prompt_mask"]], ids)
    tokens = ("prompt_tokens", "prompt_mask")
    assert reads["prompt_mask"].sum() > len(ids)
    assert_equal(*({name: made[name] for name in made if name not in tokens} for made in (reads, is_given)))


def test_serving_makes_the_same_observation_without_actions(norm_stats, tokenizer):
    pipeline = input_pipeline(source(CONFIG), MODEL, r1pro("like_action"), norm_stats, tokenizer)
    sample = raw_sample()
    training = pipeline(sample)
    serving = pipeline({name: sample[name] for name in ("proprio", "images", "prompt")})
    assert training.keys() - serving.keys() == {"actions", "action_mask"}
    assert_equal({name: training[name] for name in serving}, serving)


def test_batched_outputs_equal_one_by_one(norm_stats):
    pipeline = output_pipeline(CONFIG, MODEL, r1pro("like_action"), norm_stats)
    generator = np.random.default_rng(0)
    actions, raw_state = generator.normal(size=(3, 6, 32)), generator.normal(size=(3, 23))
    batched = pipeline({"actions": actions, "raw_state": raw_state})["actions"]
    for index in range(3):
        one = pipeline({"actions": actions[index], "raw_state": raw_state[index]})["actions"]
        np.testing.assert_array_equal(batched[index], one)


@pytest.mark.parametrize("layout", ["grippers_last", "like_action"])
def test_statistics_are_of_what_normalize_sees(norm_stats, tokenizer, layout):
    config, robot = dataclasses.replace(CONFIG, state_layout=layout), r1pro(layout)
    samples = [raw_sample(seed) for seed in range(3)]
    episode = {name: np.stack([sample[name] for sample in samples]) for name in ("proprio", "actions")}
    seen = statistics_pipeline(config, robot)(episode)
    inputs, delta = input_pipeline(source(config), MODEL, robot, norm_stats, tokenizer).transforms[:2]
    for index, sample in enumerate(samples):
        fields = delta(inputs(sample))
        np.testing.assert_array_equal(seen["state"][index], fields["state"])
        np.testing.assert_array_equal(seen["actions"][index], fields["actions"])


def test_pipelines_travel_to_worker_processes(norm_stats, tokenizer):
    robot = r1pro("like_action")
    inputs = input_pipeline(source(CONFIG), MODEL, robot, norm_stats, tokenizer)
    result = inputs(raw_sample())
    assert_equal(pickle.loads(pickle.dumps(inputs))(raw_sample()), result)
    outputs = output_pipeline(CONFIG, MODEL, robot, norm_stats)
    assert_equal(pickle.loads(pickle.dumps(outputs))(result), outputs(result))


def test_a_model_too_narrow_for_the_robot_is_refused(norm_stats, tokenizer):
    narrow, robot = dataclasses.replace(MODEL, action_dim=16), r1pro("like_action")
    message = "R1Pro has 23 entries .* room for 16; raise it with --model.action-dim 23"
    with pytest.raises(ValueError, match=message):
        input_pipeline(source(CONFIG), narrow, robot, norm_stats, tokenizer)
    with pytest.raises(ValueError, match=message):
        output_pipeline(CONFIG, narrow, robot, norm_stats)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(norm_stats, tokenizer):
    small = dataclasses.replace(MODEL, vocab_size=512)
    with pytest.raises(
        ValueError, match=r"has 1024 tokens, the model's vocabulary 512; raise it with --model.vocab-size 1024"
    ):
        input_pipeline(source(CONFIG), small, r1pro("like_action"), norm_stats, tokenizer)


def with_extras(sample: dict) -> dict:
    generator = np.random.default_rng(7)
    return sample | {
        "depth": {"head": generator.uniform(0, 12, (84, 84)).astype(np.float32)},
        "segmentation": {"head": generator.integers(0, 4, (40, 40), np.uint8)},
    }


SEEING_POINTS = dataclasses.replace(MODEL, point_clouds=True)
ALL_MODALITIES = ("rgb", "depth", "segmentation")


def test_depth_and_segmentation_become_inputs_and_nothing_else_changes(norm_stats, tokenizer):
    robot, sample = r1pro("like_action"), with_extras(raw_sample())
    before = copy.deepcopy(sample)
    freeze(sample)
    config = source(CONFIG, modalities=ALL_MODALITIES)
    result = input_pipeline(config, SEEING_POINTS, robot, norm_stats, tokenizer)(sample)
    assert_equal(sample, before)
    points = depth_to_points(sample["depth"]["head"], robot.camera("head"), 9)
    np.testing.assert_array_equal(result.pop("point_cloud"), points)
    assert points.shape == (16, 400, 3)
    np.testing.assert_array_equal(
        result["images"].pop("segmentation"), labels_to_image(sample["segmentation"]["head"], 28)
    )
    assert result["image_masks"].pop("segmentation")
    assert_equal(result, input_pipeline(source(CONFIG), MODEL, robot, norm_stats, tokenizer)(sample))


def test_without_labels_the_segmentation_image_is_masked_but_only_in_serving(norm_stats, tokenizer):
    robot, sample = r1pro("like_action"), with_extras(raw_sample())
    del sample["segmentation"]
    pipeline = input_pipeline(source(CONFIG, modalities=ALL_MODALITIES), SEEING_POINTS, robot, norm_stats, tokenizer)
    with pytest.raises(KeyError, match=r"no segmentation of camera 'head' \(task 0, episode 10, frame 3\).*--data.mod"):
        pipeline(sample)
    served = {name: sample[name] for name in ("proprio", "images", "depth", "prompt")}
    result = pipeline(served)
    assert not result["image_masks"]["segmentation"]
    assert not result["images"]["segmentation"].any()
    continuing = served | {"actions": sample["actions"], "is_pad": sample["is_pad"], "is_continuation": True}
    carried = pipeline(continuing)
    trained = input_pipeline(source(CONFIG), MODEL, robot, norm_stats, tokenizer)(sample)
    for name in ("actions", "action_mask"):
        np.testing.assert_array_equal(carried.pop(name), trained[name])
    assert_equal(carried, result)
    del served["depth"]
    with pytest.raises(KeyError, match="no depth of camera 'head', but the model was told to expect it"):
        pipeline(served)


def test_a_model_that_does_not_see_what_is_read_is_refused(norm_stats, tokenizer):
    rest = (r1pro("like_action"), norm_stats, tokenizer)
    with pytest.raises(ValueError, match=r"'demonstrations' reads depth, which the model does not see; give"):
        input_pipeline(source(CONFIG, modalities=("rgb", "depth")), MODEL, *rest)
    with pytest.raises(ValueError, match=r"sees point clouds, but depth is not read: .* --data.modalities rgb depth"):
        input_pipeline(source(CONFIG), SEEING_POINTS, *rest)
    uneven = dataclasses.replace(CONFIG, depth_stride=7)
    with pytest.raises(ValueError, match="depth_stride 7 gives 10609 points"):
        input_pipeline(source(uneven, modalities=("rgb", "depth")), SEEING_POINTS, *rest)


PROBE = """
import sys
import openpi_b1k.paths, openpi_b1k.transforms.pipeline
loaded = [name for name in ("jax", "torch", "flax", "lerobot", "huggingface_hub", "fsspec") if name in sys.modules]
print(*loaded)
"""


def test_importing_loads_nothing_heavy():
    run = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    assert not run.stdout.split()
