import numpy as np
import pytest

from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sample.environment import SampleEnvironment, mean_demonstration
from openpi_b1k.sample.recording import DEMO_SEED
from openpi_b1k.sample.render import SIZES
from openpi_b1k.sample.world import GOALS, MAX_STEPS, World

# What OmniGibson's evaluator sends: the robot's proprio and RGBA images under these names.
KEYS = {
    "head": "robot_r1::robot_r1:zed_link:Camera:0::rgb",
    "left_wrist": "robot_r1::robot_r1:left_realsense_link:Camera:0::rgb",
    "right_wrist": "robot_r1::robot_r1:right_realsense_link:Camera:0::rgb",
}


@pytest.mark.parametrize(("generation", "size"), [("2025", 256), ("2026", 61)])
def test_an_observation_is_the_evaluators(generation, size):
    environment = SampleEnvironment(generation, seed=0, episode=6)
    observation = environment.observation()
    depth_keys = {camera: key.replace("::rgb", "::depth_linear") for camera, key in KEYS.items()}
    assert set(observation) == {"robot_r1::proprio", "task_id", *KEYS.values(), *depth_keys.values()}
    assert observation["robot_r1::proprio"].shape == (size,)
    assert observation["robot_r1::proprio"].dtype == np.float32
    assert observation["task_id"].tolist() == [environment.goal.task_index] == [2]
    for camera, key in KEYS.items():
        image = observation[key]
        assert (image.shape, image.dtype) == ((SIZES[camera], SIZES[camera], 4), np.uint8)
        assert (image[..., 3] == 255).all()
        depth = observation[depth_keys[camera]]
        assert (depth.shape, depth.dtype) == (image.shape[:2], np.float32)


def test_layouts_are_those_of_the_seed_and_of_no_demonstration():
    def layout(world):
        return tuple(world.buttons["red"])

    one = [layout(SampleEnvironment("2025", 0, episode).world) for episode in range(50)]
    assert one == [layout(SampleEnvironment("2026", 0, episode).world) for episode in range(50)]
    other = [layout(SampleEnvironment("2025", 1, episode).world) for episode in range(50)]
    shown = [layout(World(goal, (DEMO_SEED, instance))) for goal in GOALS for instance in range(200)]
    assert len({*one, *other, *shown}) == 100 + 800


def test_goals_take_turns():
    assert [SampleEnvironment("2025", 0, episode).goal for episode in range(6)] == [*GOALS, *GOALS[:2]]


def test_an_episode_that_is_over_stays_as_it_is():
    environment = SampleEnvironment("2025", 0, 0)
    for _ in range(MAX_STEPS + 5):
        environment.step(np.ones(ACTION.size))
    assert environment.world.num_steps == MAX_STEPS
    before = environment.observation()
    environment.step(-np.ones(ACTION.size))
    np.testing.assert_array_equal(environment.observation()["robot_r1::proprio"], before["robot_r1::proprio"])


def test_replaying_the_mean_demonstration_hardly_ever_succeeds():
    commands = mean_demonstration(200, MAX_STEPS)
    assert (commands.shape, commands.dtype) == ((MAX_STEPS, ACTION.size), np.float32)
    successes = 0
    for episode in range(50):
        environment = SampleEnvironment("2025", 0, episode)
        for action in commands:
            environment.step(action)
        successes += environment.world.is_success
    assert successes <= 5


def test_the_mean_holds_the_last_command_of_shorter_episodes():
    commands = mean_demonstration(1, MAX_STEPS)
    gripper = commands[:, ACTION.slice("left_gripper")][:, 0]
    assert set(gripper) == {1.0, -1.0}
    assert gripper[-1] == -1.0
    np.testing.assert_array_equal(commands[-1], commands[-2])
