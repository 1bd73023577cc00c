"""Depth and instances of the sample world, against its geometry and its images."""

import numpy as np
import pytest

from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample import render, scene
from openpi_b1k.sample.world import BUTTONS, GOALS, World, arm_joints
from openpi_b1k.transforms.geometry import depth_to_points


@pytest.fixture
def world():
    """Returns a world whose grippers are away from the buttons."""
    world = World(GOALS[0], (0, 1))
    world.buttons = {"red": np.array([0.1, 0.15]), "blue": np.array([-0.12, 0.05])}
    for hand, x in (("left", -0.2), ("right", 0.2)):
        world.arms[hand][:2] = arm_joints(hand, (x, -0.2))
    return world


def test_every_camera_has_both_of_its_images_size(world):
    depths, instances = scene.measure(world)
    assert list(depths) == list(instances) == list(render.SIZES)
    for camera, size in render.SIZES.items():
        assert (depths[camera].shape, depths[camera].dtype) == ((size, size), np.float32)
        assert (instances[camera].shape, instances[camera].dtype) == ((size, size), np.uint8)
        assert set(np.unique(instances[camera])) <= set(scene.MESHES)


def test_distances_are_those_of_what_is_seen(world):
    depths, instances = scene.measure(world)
    height = render.HEAD_HEIGHT
    heights = {scene.TABLE: 0.0, scene.FLOOR: -scene.FLOOR_DEPTH}
    heights |= dict.fromkeys(scene.RIMS.values(), scene.RIM_HEIGHT)
    heights |= dict.fromkeys(scene.CAPS.values(), scene.CAP_HEIGHT)
    heights |= dict.fromkeys(scene.GRIPPERS.values(), scene.GRIPPER_HEIGHT)
    assert set(np.unique(instances["head"])) == set(heights)
    for instance, top in heights.items():
        np.testing.assert_allclose(depths["head"][instances["head"] == instance], height - top, atol=1e-6)
    housing = instances["left_wrist"] == scene.HOUSING
    assert housing[0, 0]
    assert not housing[28, 28]
    assert (depths["left_wrist"][housing] == np.float32(scene.HOUSING_DISTANCE)).all()


@pytest.mark.parametrize("button", BUTTONS)
def test_a_button_is_where_its_colour_is(world, button):
    world.light = 1.0
    image, (_, instances) = render.render(world)["head"], scene.measure(world)
    is_coloured = np.abs(image.astype(int) - render.COLOURS[button]).sum(-1) < 12
    is_button = np.isin(instances["head"], [scene.CAPS[button], scene.RIMS[button]])
    assert (is_coloured & ~is_button).sum() == 0
    assert is_coloured.sum() > 0.75 * is_button.sum()
    assert scene.button_object(button) == {"red": "red_button_1", "blue": "blue_button_2"}[button]


def test_points_of_a_button_lie_at_its_place(world):
    """From depth and the robot's intrinsics back to the table: x to the right, y downwards in the image."""
    depths, instances = scene.measure(world)
    points = depth_to_points(depths["head"], r1pro("like_action").camera("head"), stride=9).reshape(-1, 3)
    pixels = ((np.arange(0, 720, 9) + 0.5) * 84 / 720).astype(int)
    shown = instances["head"][np.ix_(pixels, pixels)].ravel()
    for button, place in world.buttons.items():
        found = points[shown == scene.RIMS[button]]
        # Heights are drawn without parallax, so a rim seems nearer to the middle by its share of the camera's height.
        expected = np.array([place[0], -place[1]]) * (1 - scene.RIM_HEIGHT / render.HEAD_HEIGHT)
        np.testing.assert_allclose(found[:, :2].mean(0), expected, atol=0.01)
