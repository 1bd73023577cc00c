import numpy as np
import pytest

from openpi_b1k.robots.r1pro import PROPRIO_2025, PROPRIO_2026
from openpi_b1k.sample.recording import (
    HOLD_STEPS,
    NEAR,
    SHARE_CLOSED,
    SHARE_NEAR,
    demo_world,
    goals_by_demo,
    record,
)
from openpi_b1k.sample.render import SIZES, render
from openpi_b1k.sample.scene import measure
from openpi_b1k.sample.world import FINGER_OPEN, GOALS


@pytest.fixture(scope="module")
def recording():
    return record(3, GOALS[1], PROPRIO_2026)


def test_row_t_is_what_was_seen_before_action_t(recording):
    world = demo_world(GOALS[1], 3)
    for t, action in enumerate(recording.actions):
        np.testing.assert_array_equal(recording.proprio[t], world.proprio(PROPRIO_2026))
        for camera, image in render(world).items():
            np.testing.assert_array_equal(recording.frames[camera][t], image)
        was_pressed = world.pressed is not None
        world.step(action)
        assert world.is_success == (t >= recording.pressed_at)
        assert was_pressed == (t > recording.pressed_at)


def test_shapes_types_and_the_hold_at_the_end(recording):
    n = recording.length
    assert n == recording.pressed_at + 1 + HOLD_STEPS
    assert (recording.proprio.shape, recording.proprio.dtype) == ((n, 61), np.float32)
    assert (recording.actions.shape, recording.actions.dtype) == ((n, 23), np.float32)
    for camera, frames in recording.frames.items():
        assert (frames.shape, frames.dtype) == ((n, SIZES[camera], SIZES[camera], 3), np.uint8)
    assert not recording.depth
    assert not recording.instances
    assert record(3, GOALS[1], PROPRIO_2025).proprio.shape == (n, 256)


def test_other_modalities_are_recorded_beside_the_same_episode(recording):
    more = record(3, GOALS[1], PROPRIO_2026, ("rgb", "depth", "segmentation"))
    np.testing.assert_array_equal(more.actions, recording.actions)
    world = demo_world(GOALS[1], 3)
    for t, action in enumerate(recording.actions):
        depths, instances = measure(world)
        for camera, depth in depths.items():
            np.testing.assert_array_equal(more.frames[camera][t], recording.frames[camera][t])
            np.testing.assert_array_equal(more.depth[camera][t], depth)
            np.testing.assert_array_equal(more.instances[camera][t], instances[camera])
        world.step(action)
    assert not record(3, GOALS[1], PROPRIO_2026, ("rgb", "depth")).instances


@pytest.mark.parametrize("num_demos", [1, 4, 7, 100])
def test_goals_share_the_demonstrations_and_come_by_task(num_demos):
    listed = goals_by_demo(num_demos)
    assert len(set(listed)) == len(listed) == num_demos
    tasks = [goal.task_index for goal, _ in listed]
    assert tasks == sorted(tasks)
    counts = [tasks.count(goal.task_index) for goal in GOALS]
    assert max(counts) - min(counts) <= 1
    assert all(1 <= instance <= num_demos for _, instance in listed)


def test_some_demonstrations_start_where_a_policy_gets_by_its_own_mistakes():
    starts = [demo_world(goal, instance) for goal, instance in goals_by_demo(200)]
    away = [np.linalg.norm(world.hand_position(world.goal.hand) - world.buttons[world.goal.button]) for world in starts]
    is_near = np.array(away) < NEAR * np.sqrt(2)
    is_closed = np.array([world.fingers[world.goal.hand] < FINGER_OPEN for world in starts])
    assert SHARE_NEAR - 0.1 < is_near.mean() < SHARE_NEAR + 0.25  # some come near by chance
    assert abs(is_closed.mean() - SHARE_CLOSED) < 0.1
    assert all(world.button_under(world.goal.hand) is None for world in np.array(starts)[is_closed])
