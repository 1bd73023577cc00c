import numpy as np
import pytest

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.robots.r1pro import ACTION, r1pro
from openpi_b1k.serving import inpainting
from openpi_b1k.serving.continuing import (
    InpaintingGuidance,
    RealTimeGuidance,
    blank_continuation,
    guidance_for,
    with_continuation,
)
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
    assert carried["is_continuation"]


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


def test_how_chunks_continue_one_another_follows_from_the_execution(tmp_path):
    assert guidance_for(ExecutionConfig("real_time", max_guidance=3.0), ACTION, 8) == RealTimeGuidance(3.0)
    for execution in (ExecutionConfig(), ExecutionConfig("temporal_ensemble"), ExecutionConfig("receding_temporal")):
        assert guidance_for(execution, ACTION, 8) is None
    soft = guidance_for(ExecutionConfig(kept_actions=2, inpaint_until=0.1), ACTION, 8)
    assert isinstance(soft, InpaintingGuidance)
    assert (soft.num_kept, soft.min_time, soft.gain) == (2, 0.1, None)

    correlation = np.full((8 * ACTION.size,) * 2, 0.5) + 0.5 * np.eye(8 * ACTION.size)
    np.save(tmp_path / "correlation.npy", correlation)
    execution = ExecutionConfig(kept_actions=2, correlation=str(tmp_path / "correlation.npy"))
    carried = guidance_for(execution, ACTION, 8)
    assert isinstance(carried, InpaintingGuidance)
    np.testing.assert_array_equal(carried.gain, inpainting.gain(correlation, 2, ACTION.size))
    with pytest.raises(ValueError, match=r"must hold floats \[207, 207\]"):
        guidance_for(execution, ACTION, 9)
    with pytest.raises(FileNotFoundError, match="no chunk correlation at"):
        guidance_for(ExecutionConfig(kept_actions=2, correlation=str(tmp_path / "none.npy")), ACTION, 8)
    with pytest.raises(ValueError, match=r"execution_horizon must lie in \[1, 8\]"):
        guidance_for(ExecutionConfig(kept_actions=8), ACTION, 8)


@pytest.mark.parametrize(("guidance", "num_known"), [(RealTimeGuidance(5.0), 1), (InpaintingGuidance(3, 0.3, None), 3)])
def test_a_blank_continuation_is_of_the_size_that_comes(guidance, num_known):
    blank = blank_continuation(guidance, ACTION)
    assert blank.actions.shape == (num_known, ACTION.size)
    assert not blank.actions.any()
    assert blank.num_fixed == num_known
