import numpy as np
import pytest

from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.b1k import B1kInputs, B1kOutputs, extract_state

CAMERAS = ("head", "left_wrist", "right_wrist")


def raw_sample(**changes) -> dict:
    images = {name: np.zeros((4, 4, 3), np.uint8) for name in CAMERAS}
    return {
        "proprio": np.zeros(256, np.float32),
        "images": images,
        "prompt": "wave",
        "episode": 30,
        "frame": 7,
    } | changes


def test_agrees_with_comet(reference):
    images = {name: reference[f"b1k/in/{name}"] for name in CAMERAS}
    sample = raw_sample(proprio=reference["b1k/in/proprio"], images=images)
    fields = B1kInputs(r1pro("grippers_last"), CAMERAS)(sample)
    np.testing.assert_array_equal(fields["state"], reference["b1k/out/state"])
    np.testing.assert_array_equal(fields["raw_state"], reference["b1k/out/state"])
    sums = [int(fields["images"][name].sum(dtype=np.int64)) for name in CAMERAS]
    assert sums == reference["b1k/out/image_sum"].tolist()
    assert fields["image_masks"] == dict.fromkeys(CAMERAS, True)
    assert fields["prompt"] == "wave"


# Where each state entry lies in the raw vector, read off the published index tables by hand: copies, then fingers.
EXPECTED = {
    256: ([*range(253, 256), *range(236, 240), *range(158, 165), *range(197, 204)], ([193, 194], [232, 233])),
    61: ([*range(3), *range(53, 57), *range(3, 10), *range(28, 35)], ([24, 25], [49, 50])),
}


@pytest.mark.parametrize("size", [256, 61])
@pytest.mark.parametrize("layout", ["grippers_last", "like_action"])
def test_every_entry_comes_from_its_place(size, layout):
    copied, (left, right) = EXPECTED[size]
    proprio = np.arange(size, dtype=np.float64)
    state = [*proprio[copied], proprio[left].sum(), proprio[right].sum()]
    if layout == "like_action":
        state = [*state[:14], state[21], *state[14:21], state[22]]
    robot = r1pro(layout)
    np.testing.assert_array_equal(extract_state(robot, proprio), state)
    np.testing.assert_array_equal(extract_state(robot, np.stack([proprio] * 3)), np.stack([state] * 3))


def test_actions_come_along_where_there_are_any():
    actions, is_pad = np.ones((3, 23), np.float32), np.array([False, False, True])
    transform = B1kInputs(r1pro("like_action"), CAMERAS)
    fields = transform(raw_sample(actions=actions, is_pad=is_pad))
    np.testing.assert_array_equal(fields["actions"], actions)
    np.testing.assert_array_equal(fields["is_pad"], is_pad)
    assert not {"actions", "is_pad"} & transform(raw_sample()).keys()


def test_only_the_chosen_cameras_in_the_chosen_order():
    fields = B1kInputs(r1pro("like_action"), ("left_wrist", "head"))(raw_sample())
    assert list(fields["images"]) == list(fields["image_masks"]) == ["left_wrist", "head"]


NAN_STATE = np.zeros(256, np.float32)
NAN_STATE[193] = np.nan
NAN_ACTION = np.zeros((2, 23), np.float32)
NAN_ACTION[1, 5] = np.inf
IS_PAD = np.zeros(2, bool)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"proprio": np.zeros(60)}, ValueError, "proprio of R1Pro has 256 or 61 or 25 entries; got 60"),
        ({"proprio": NAN_STATE}, ValueError, r"state must be finite; left_gripper holds NaN .*\(episode 30, frame 7\)"),
        ({"images": {}}, KeyError, "no image of camera 'head'.*--data.cameras"),
        ({"images": {"head": np.zeros((4, 4, 3))}}, ValueError, r"uint8 \[h, w, 3\]; camera 'head' gave float64"),
        ({"images": {"head": np.zeros((4, 4), np.uint8)}}, ValueError, r"camera 'head' gave uint8 \[4, 4\]"),
        ({"actions": np.zeros((2, 22)), "is_pad": IS_PAD}, ValueError, r"\[action horizon, 23\]; got \[2, 22\]"),
        ({"actions": NAN_ACTION, "is_pad": IS_PAD}, ValueError, "actions must be finite; torso holds NaN or infinity"),
    ],
)  # fmt: skip
def test_a_defective_sample_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        B1kInputs(r1pro("like_action"), CAMERAS)(raw_sample(**changes))


def test_a_missing_prompt_is_refused():
    sample = raw_sample()
    del sample["prompt"]
    with pytest.raises(KeyError, match=r"prompt missing \(episode 30, frame 7\)"):
        B1kInputs(r1pro("like_action"), CAMERAS)(sample)


def test_outputs_are_cut_to_the_robot():
    actions = np.arange(2 * 32.0).reshape(2, 32)
    outputs = B1kOutputs(r1pro("like_action"))({"actions": actions, "raw_state": np.ones(23)})
    np.testing.assert_array_equal(outputs["actions"], actions[:, :23])
    np.testing.assert_array_equal(outputs["state"], np.ones(23))
    with pytest.raises(ValueError, match="actions of R1Pro have 23 entries; the model gave 16"):
        B1kOutputs(r1pro("like_action"))({"actions": actions[:, :16], "raw_state": np.ones(23)})
