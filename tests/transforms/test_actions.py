import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.actions import AbsoluteActions, DeltaActions

JOINTS = ("torso", "left_arm", "right_arm")
# Multiples of 2^-10 in [-4, 4]: their sums are exact in float32.
DYADIC = strategies.integers(-4096, 4096).map(lambda number: number / 1024)


@hypothesis.given(
    state=arrays.arrays(np.float32, 23, elements=DYADIC),
    actions=arrays.arrays(np.float32, (4, 23), elements=DYADIC),
    names=strategies.sets(strategies.sampled_from(JOINTS)).map(tuple),
)
@pytest.mark.parametrize("layout", ["grippers_last", "like_action"])
def test_absolute_of_delta_is_identity(state, actions, names, layout):
    sample = {"state": state, "actions": actions}
    delta = DeltaActions(names, r1pro(layout))(sample)
    back = AbsoluteActions(names, r1pro(layout))(delta)
    np.testing.assert_array_equal(back["actions"], actions)


def test_agrees_with_openpi_where_its_mask_meets_the_right_joints(reference):
    # openpi's mask (-3, 4, 7, -1, 7, -1) subtracts index by index; on a state ordered like the action that is ours.
    sample = {"state": reference["b1k/out/state"], "actions": reference["b1k/in/actions"]}
    robot = r1pro("like_action")
    delta = DeltaActions(JOINTS, robot)(sample)
    np.testing.assert_allclose(delta["actions"], reference["delta/out/actions"], atol=1e-6)
    back = AbsoluteActions(JOINTS, robot)(delta)
    np.testing.assert_allclose(back["actions"], reference["delta/out/roundtrip"], atol=1e-6)


def test_fields_are_found_by_name_where_the_orders_differ():
    robot = r1pro("grippers_last")
    state = np.zeros(23, np.float32)
    state[14:21] = np.arange(1, 8)  # right arm: before the grippers here, after the left one in the action
    delta = DeltaActions(("right_arm",), robot)({"state": state, "actions": np.zeros((2, 23), np.float32)})
    expected = np.zeros((2, 23))
    expected[:, 15:22] = -np.arange(1, 8)
    np.testing.assert_array_equal(delta["actions"], expected)


def test_batched_equals_one_by_one():
    generator = np.random.default_rng(0)
    state, actions = generator.normal(size=(5, 23)), generator.normal(size=(5, 4, 23))
    transform = DeltaActions(JOINTS, r1pro("like_action"))
    batched = transform({"state": state, "actions": actions})["actions"]
    for index in range(5):
        one = transform({"state": state[index], "actions": actions[index]})["actions"]
        np.testing.assert_array_equal(batched[index], one)


def test_serving_has_no_actions_to_make_relative():
    sample = {"state": np.zeros(23)}
    assert DeltaActions(JOINTS, r1pro("like_action"))(sample) == sample


def test_an_unknown_field_is_refused():
    with pytest.raises(KeyError, match="no field 'legs'; known fields: base, torso"):
        DeltaActions(("legs",), r1pro("like_action"))({"state": np.zeros(23), "actions": np.zeros((2, 23))})
