import itertools

import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.sample.scoring import NUM_HUMAN, human_means, literals
from openpi_b1k.sample.world import GOALS, MAX_STEPS, Expert, arm_joints


def command(environment, targets, *, closed=()):
    """Returns an action that moves each gripper to its place (x, y) in m."""
    action = np.zeros(ACTION.size, np.float32)
    for hand, target in targets.items():
        rest = environment.world.arms[hand].copy()
        rest[:2] = arm_joints(hand, target)
        action[ACTION.slice(f"{hand}_arm")] = rest
        action[ACTION.slice(f"{hand}_gripper")] = -1.0 if hand in closed else 1.0
    return action


def places(environment):
    return {hand: environment.world.hand_position(hand) for hand in ("left", "right")}


def play(environment, targets, closed=()):
    while not environment.world.is_over:
        environment.step(command(environment, targets, closed=closed))
    return environment.scores.q_score


def test_a_success_scores_1_and_doing_nothing_0():
    environment = SampleEnvironment("2025", 0, 0)
    expert = Expert(environment.world)
    while not environment.world.is_over:
        assert environment.scores.q_score in (0.0, 0.5)  # 0.5 from the moment the gripper is at the button
        environment.step(expert.action())
    assert environment.world.is_success
    assert environment.scores.q_score == 1.0
    idle = SampleEnvironment("2025", 0, 0)
    assert play(idle, places(idle)) == 0.0
    assert idle.world.num_steps == MAX_STEPS


def test_the_gripper_at_the_button_that_never_closes_scores_a_half():
    environment = SampleEnvironment("2025", 0, 1)
    goal, world = environment.world.goal, environment.world
    assert play(environment, places(environment) | {goal.hand: world.buttons[goal.button]}) == 0.5


def test_a_literal_that_held_at_the_start_gives_nothing():
    for episode in range(400):
        environment = SampleEnvironment("2025", 3, episode)
        if literals(environment.world)[0]:
            break
    else:
        pytest.fail("no layout starts at the button; try another seed")
    assert play(environment, places(environment)) == 0.0  # stays there: one of two literals holds, none was gained


def test_the_other_gripper_at_the_named_button_scores_nothing():
    environment = SampleEnvironment("2025", 0, 0)
    goal = environment.world.goal
    other = {"left": "right", "right": "left"}[goal.hand]
    targets = places(environment) | {other: environment.world.buttons[goal.button]}
    assert play(environment, targets, closed=(other,)) == 0.0
    assert environment.world.pressed == (goal.button, other)


def test_distances_are_the_sum_of_what_each_step_moved():
    environment = SampleEnvironment("2026", 0, 2)
    rng = np.random.default_rng(0)
    track = [places(environment)]
    for _ in range(10):
        targets = {hand: rng.uniform(-0.3, 0.3, size=2) for hand in ("left", "right")}
        environment.step(command(environment, targets))
        track.append(places(environment))
    for hand in ("left", "right"):
        moved = sum(np.hypot(*(after[hand] - before[hand])) for before, after in itertools.pairwise(track))
        assert environment.scores.distance[hand] == pytest.approx(moved)
        assert moved > 0.05
    assert environment.scores.distance["base"] == 0.0


@pytest.mark.parametrize("goal", GOALS)
def test_humans_need_what_the_expert_needs(goal):
    means = human_means(goal)
    assert NUM_HUMAN == 50
    assert 10 < means.steps < 45  # the expert needs at most 45
    assert means.distance["base"] == 0
    assert 0.05 < means.distance[goal.hand] < 0.9
