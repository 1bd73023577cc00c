import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION, r1pro
from openpi_b1k.serving.continuing import with_continuation
from openpi_b1k.serving.executor import Continuation
from openpi_b1k.transforms.actions import AbsoluteActions, DeltaActions


def known_actions(num: int) -> Continuation:
    return Continuation(np.random.default_rng(0).normal(size=(num, ACTION.size)).astype(np.float32), num_fixed=1)


def test_known_actions_come_first_and_what_follows_is_padding():
    sample, continuation = {"prompt": "go"}, known_actions(3)
    carried = with_continuation(sample, continuation, 5)
    assert sample == {"prompt": "go"}
    assert carried["prompt"] == "go"
    np.testing.assert_array_equal(carried["actions"][:3], continuation.actions)
    np.testing.assert_array_equal(carried["actions"][3:], continuation.actions[[2, 2]])
    assert carried["is_pad"].tolist() == [False, False, False, True, True]


def test_a_whole_chunk_has_no_padding():
    assert not with_continuation({}, known_actions(5), 5)["is_pad"].any()


def test_they_become_relative_to_the_new_observation():
    robot, joints = r1pro("grippers_last"), ("torso", "left_arm", "right_arm")
    continuation = known_actions(3)
    state = np.random.default_rng(1).normal(size=robot.state.size).astype(np.float32)
    delta = DeltaActions(joints, robot)(with_continuation({"state": state}, continuation, 4))
    for name in joints:
        expected = continuation.actions[:, ACTION.slice(name)] - state[robot.state.slice(name)]
        np.testing.assert_array_equal(delta["actions"][:3, ACTION.slice(name)], expected)
    back = AbsoluteActions(joints, robot)(delta)["actions"]
    np.testing.assert_allclose(back[:3], continuation.actions, atol=1e-6)


def test_more_than_a_chunk_is_refused():
    with pytest.raises(ValueError, match="6 actions are to be continued in a chunk of 5"):
        with_continuation({}, known_actions(6), 5)
