"""What the sample world's cameras measure besides colours: how far away each pixel is, and which mesh it shows.

Drawn like the images, in the table's plane: what stands on it is nearer by its height, but not moved by parallax.
"""

import numpy as np

from openpi_b1k.sample.render import BUTTON_RADIUS, LENS_RADIUS, TABLE_HALF, pixel_grid, viewpoints
from openpi_b1k.sample.world import HANDS, World

FLOOR_DEPTH = 0.5
"""Metres from the table's top to the floor."""
RIM_HEIGHT, CAP_HEIGHT, GRIPPER_HEIGHT = 0.03, 0.05, 0.08
CAP_RADIUS = 0.6 * BUTTON_RADIUS
HOUSING_DISTANCE = 0.04

FLOOR, TABLE, HOUSING = 31, 44, 93
CAPS = {"red": 57, "blue": 73}
RIMS = {"red": 55, "blue": 71}
GRIPPERS = {"left": 90, "right": 91}
MESHES = {
    FLOOR: "floors_0/base_link/visuals",
    TABLE: "table_3/base_link/visuals",
    **{number: f"{button}_button_{i + 1}/cap/visuals" for i, (button, number) in enumerate(CAPS.items())},
    **{number: f"{button}_button_{i + 1}/base_link/visuals" for i, (button, number) in enumerate(RIMS.items())},
    **{number: f"robot_r1/{hand}_gripper_link/visuals" for hand, number in GRIPPERS.items()},
    HOUSING: "robot_r1/realsense_link/visuals",
}
"""Instance number -> the mesh's path in the scene, which begins with its object's name. A button has two meshes."""


def button_object(button: str) -> str:
    """Returns a button's name as annotations and the scene have it, such as red_button_1."""
    return MESHES[CAPS[button]].split("/")[0]


def measure(world: World) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns ({camera: depth float32 [size, size] in m along its axis}, {camera: instance numbers uint8})."""
    depths, instances = {}, {}
    for camera, (centre, height) in viewpoints(world).items():
        depths[camera], instances[camera] = _measure(world, camera, centre, height)
    return depths, instances


def _measure(world: World, camera: str, centre: np.ndarray, height: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixel_grid(camera, centre, height)
    depth = np.full((y.size, x.size), height + FLOOR_DEPTH, np.float32)
    instances = np.full(depth.shape, FLOOR, np.uint8)

    def cover(inside: np.ndarray, distance: float, instance: int) -> None:
        depth[inside], instances[inside] = distance, instance

    cover((np.abs(x) <= TABLE_HALF) & (np.abs(y) <= TABLE_HALF), height, TABLE)
    for button, (bx, by) in world.buttons.items():
        away = np.hypot(x - bx, y - by)
        cover(away <= BUTTON_RADIUS, height - RIM_HEIGHT, RIMS[button])
        cover(away <= CAP_RADIUS, height - CAP_HEIGHT, CAPS[button])
    for hand in HANDS:
        hx, hy = world.hand_position(hand)
        for side in (-1, 1):
            bar = np.abs(x - hx - side * (0.012 + world.fingers[hand])) <= 0.010
            cover(bar & (np.abs(y - hy) <= 0.035), height - GRIPPER_HEIGHT, GRIPPERS[hand])
    if camera != "head":
        cover(np.hypot(x - centre[0], y - centre[1]) > LENS_RADIUS, HOUSING_DISTANCE, HOUSING)
    return depth, instances
