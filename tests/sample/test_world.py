import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION, ACTION_LIMITS, PROPRIO_2025, PROPRIO_2026, r1pro
from openpi_b1k.sample.render import render
from openpi_b1k.sample.world import (
    ARM_REST,
    BUTTON_GAP,
    BUTTONS,
    FINGER_OPEN,
    GOALS,
    HALF_RANGE,
    HANDS,
    JOINT_SPEED,
    MAX_STEPS,
    TOLERANCE,
    TORSO_REST,
    Expert,
    World,
    arm_joints,
)
from openpi_b1k.transforms.b1k import extract_state


def command(world, hand, position, *, is_closing):
    """Returns an action that sends one gripper to (x, y) and leaves the other where it is."""
    action = np.zeros(ACTION.size)
    for other in HANDS:
        action[ACTION.slice(f"{other}_arm")] = world.arms[other]
        action[ACTION.slice(f"{other}_gripper")] = 1.0
    action[ACTION.slice(f"{hand}_arm")][:2] = arm_joints(hand, position)
    action[ACTION.slice(f"{hand}_gripper")] = -1.0 if is_closing else 1.0
    return action


def press(world, hand, position):
    """Goes to (x, y) with one gripper, closes it there, and waits until it is closed."""
    while np.linalg.norm(world.hand_position(hand) - position) > 1e-9 and not world.is_over:
        world.step(command(world, hand, position, is_closing=False))
    while world.fingers[hand] > 0 and not world.is_over:
        world.step(command(world, hand, position, is_closing=True))


def run_expert(world):
    expert = Expert(world)
    actions = []
    while not world.is_over:
        actions.append(expert.action())
        world.step(actions[-1])
    return np.stack(actions)


def empty_place(world):
    """Returns a place on the table away from both buttons."""
    for position in np.stack(np.meshgrid([-0.2, 0.0, 0.2], [-0.2, 0.0, 0.2]), axis=-1).reshape(-1, 2):
        if min(np.linalg.norm(world.buttons[name] - position) for name in BUTTONS) > 2 * TOLERANCE:
            return position
    raise AssertionError("two buttons cannot fill the table")


def test_the_same_seed_gives_the_same_course():
    worlds = [World(GOALS[1], (0, 7)) for _ in range(2)]
    actions = [run_expert(world) for world in worlds]
    np.testing.assert_array_equal(*actions)
    np.testing.assert_array_equal(*[world.proprio(PROPRIO_2025) for world in worlds])
    for camera, image in render(worlds[0]).items():
        np.testing.assert_array_equal(image, render(worlds[1])[camera])
    assert worlds[0].num_steps == worlds[1].num_steps == len(actions[0])


def test_other_seeds_and_goals_give_other_layouts():
    places = [World(goal, seed).buttons["red"] for goal in GOALS for seed in ((0, 1), (0, 2), (1, 1))]
    assert len(np.unique(places, axis=0)) == 12


def test_buttons_stay_in_range_and_apart():
    assert 2 * HALF_RANGE / TOLERANCE >= 12
    assert BUTTON_GAP > 2 * TOLERANCE
    buttons = np.array([list(World(GOALS[0], (3, i)).buttons.values()) for i in range(300)])
    assert np.abs(buttons).max() <= HALF_RANGE
    assert np.linalg.norm(buttons[:, 0] - buttons[:, 1], axis=-1).min() >= BUTTON_GAP
    assert np.ptp(buttons, axis=(0, 1)).min() > 1.9 * HALF_RANGE
    starts = np.array([World(GOALS[0], (3, i)).hand_position("left") for i in range(300)])
    assert np.ptp(starts, axis=0).min() > 1.9 * HALF_RANGE


def test_the_expert_always_succeeds_in_time_and_within_the_robots_limits():
    num_steps = []
    lower, upper = np.transpose(ACTION_LIMITS)
    for i in range(200):
        world = World(GOALS[i % len(GOALS)], (5, i))
        actions = run_expert(world)
        assert world.is_success
        assert (actions >= lower - 1e-6).all()
        assert (actions <= upper + 1e-6).all()
        num_steps.append(world.num_steps)
    assert max(num_steps) <= 0.75 * MAX_STEPS  # a policy may be slower


@pytest.mark.parametrize("button", BUTTONS)
@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.task_name)
def test_only_the_named_button_and_gripper_count(goal, button, hand):
    world = World(goal, (0, 1))
    press(world, hand, world.buttons[button])
    assert world.pressed == (button, hand)
    assert world.is_over
    assert world.is_success == ((button, hand) == (goal.button, goal.hand))


@pytest.mark.parametrize(("tolerances", "is_pressed"), [(0.98, True), (1.02, False)])
def test_the_tolerance(tolerances, is_pressed):
    world = World(GOALS[0], (0, 1))
    away = world.buttons["red"] - world.buttons["blue"]
    press(world, "left", world.buttons["red"] + tolerances * TOLERANCE * away / np.linalg.norm(away))
    assert world.is_success == is_pressed


def test_closing_in_the_air_is_neither_success_nor_failure():
    world = World(GOALS[0], (0, 1))
    press(world, "left", empty_place(world))
    assert world.pressed is None
    assert not world.is_over


def test_a_closed_gripper_presses_when_it_comes_to_rest_and_not_in_passing():
    world = World(GOALS[0], (0, 1))
    press(world, "left", empty_place(world))
    button = world.buttons["red"]
    while np.linalg.norm(world.hand_position("left") - button) > TOLERANCE:
        world.step(command(world, "left", button, is_closing=True))
    away = world.buttons["red"] - world.hand_position("left")
    world.step(command(world, "left", button + 10 * away + 1.0, is_closing=True))  # on at full speed
    assert world.pressed is None
    for _ in range(MAX_STEPS):
        if not world.is_over:
            world.step(command(world, "left", button, is_closing=True))
    assert world.is_success


def test_an_episode_ends_when_time_is_up():
    world = World(GOALS[0], (0, 1))
    for _ in range(MAX_STEPS):
        assert not world.is_over
        world.step(command(world, "left", world.hand_position("left"), is_closing=False))
    assert world.is_over
    assert not world.is_success


def test_joints_follow_at_a_limited_speed_and_only_two_of_an_arm_move():
    world = World(GOALS[0], (0, 1))
    for sign in (1, -1, 1):
        before = world.arms["right"].copy()
        world.step(np.full(ACTION.size, 100.0 * sign))
        moved = world.arms["right"] - before
        np.testing.assert_allclose(moved[:2], sign * JOINT_SPEED)
        np.testing.assert_array_equal(moved[2:], 0)
    np.testing.assert_array_equal(world.arms["right"][2:], ARM_REST[2:])


def test_proprio_tells_nothing_of_the_buttons_and_the_cameras_do():
    world, other = World(GOALS[0], (0, 1)), World(GOALS[0], (0, 1))
    other.buttons = {name: position[::-1] * -1 for name, position in world.buttons.items()}
    for layout in (PROPRIO_2025, PROPRIO_2026):
        np.testing.assert_array_equal(world.proprio(layout), other.proprio(layout))
    images, others = render(world), render(other)
    assert np.abs(images["head"].astype(int) - others["head"]).max() > 50


@pytest.mark.parametrize("layout", ["like_action", "grippers_last"])
def test_proprio_of_both_generations_holds_the_robots_state(layout):
    world = World(GOALS[2], (0, 3))
    for _ in range(4):
        world.step(command(world, "right", np.zeros(2), is_closing=True))
    robot = r1pro(layout)
    expected = {
        "base": np.zeros(3),
        "torso": TORSO_REST,
        "left_arm": world.arms["left"],
        "right_arm": world.arms["right"],
        "left_gripper": [2 * FINGER_OPEN],
        "right_gripper": [2 * world.fingers["right"]],
    }
    for proprio in (world.proprio(PROPRIO_2025), world.proprio(PROPRIO_2026)):
        assert proprio.dtype == np.float32
        state = extract_state(robot, proprio)
        for name, values in expected.items():
            np.testing.assert_allclose(state[robot.state.slice(name)], values, rtol=1e-6)


def test_goals():
    assert [goal.task_index for goal in GOALS] == [0, 1, 2, 3]
    assert len({goal.prompt for goal in GOALS}) == len({goal.task_name for goal in GOALS}) == 4
    assert GOALS[3].prompt == "Press the blue button with the right gripper."
