import numpy as np
import pytest

from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.sample import render as drawing
from openpi_b1k.sample.world import BUTTONS, FINGER_OPEN, GOALS, HALF_RANGE, World, arm_joints

HEIGHTS = {"head": drawing.HEAD_HEIGHT, "left_wrist": drawing.WRIST_HEIGHT, "right_wrist": drawing.WRIST_HEIGHT}


@pytest.fixture
def world():
    """Returns a world whose grippers are away from the middle."""
    world = World(GOALS[0], (0, 1))
    for hand, x in (("left", -0.3), ("right", 0.3)):
        world.arms[hand][:2] = arm_joints(hand, (x, -0.3))
    return world


def test_images_are_square_uint8_of_even_size_in_the_robots_order(world):
    images = drawing.render(world)
    assert list(images) == [camera.name for camera in CAMERAS]
    for camera, image in images.items():
        size = drawing.SIZES[camera]
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert size % 2 == 0  # yuv420p


def test_sizes_and_intrinsics_scale_from_the_robots():
    scales = {camera.name: drawing.SIZES[camera.name] / camera.size for camera in CAMERAS}
    assert len({round(scale, 9) for scale in scales.values()}) == 1
    for camera in CAMERAS:
        assert drawing.focal_length(camera.name) == pytest.approx(camera.focal_length * scales[camera.name])


@pytest.mark.parametrize("button", BUTTONS)
@pytest.mark.parametrize("camera", HEIGHTS)
def test_a_button_appears_where_a_pinhole_puts_it(world, camera, button):
    centre = np.zeros(2) if camera == "head" else world.hand_position(camera.removesuffix("_wrist"))
    away = np.array([10.0, 10.0])
    world.buttons = dict.fromkeys(BUTTONS, away)
    world.buttons[button] = centre + np.array([0.055, 0.08])
    world.light = 1.0
    difference = np.abs(drawing.render(world)[camera] - np.array(drawing.COLOURS[button], float)).sum(axis=-1)

    size = drawing.SIZES[camera]
    rows, columns = np.nonzero(difference < 12)
    found = [columns.mean(), rows.mean()]
    scale = drawing.focal_length(camera) / HEIGHTS[camera]
    expected = [(size - 1) / 2 + scale * 0.055, (size - 1) / 2 - scale * 0.08]
    np.testing.assert_allclose(found, expected, atol=1.0)
    radius = drawing.BUTTON_RADIUS * scale
    assert len(rows) == pytest.approx(np.pi * (radius - 0.5) ** 2, rel=0.15)


def test_the_head_camera_sees_every_place_a_button_can_have():
    reach = HALF_RANGE * drawing.focal_length("head") / drawing.HEAD_HEIGHT
    assert reach <= drawing.SIZES["head"] / 2
    assert drawing.TABLE_HALF >= HALF_RANGE


def test_buttons_and_grippers_can_be_told_apart(world):
    colours = np.array([*drawing.COLOURS.values(), drawing.TABLE, drawing.FLOOR], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 50


def test_fingers_are_seen_to_close(world):
    before = drawing.render(world)["left_wrist"].astype(int)
    assert world.fingers["left"] == FINGER_OPEN
    world.fingers["left"] = 0.0
    assert np.abs(drawing.render(world)["left_wrist"] - before).max() > 50


def test_light_scales_the_image(world):
    world.light = 1.0
    bright = drawing.render(world)["head"].astype(float)
    world.light = 0.5
    np.testing.assert_allclose(drawing.render(world)["head"], bright / 2, atol=1)
