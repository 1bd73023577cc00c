"""The sample world's cameras, drawn with NumPy: a pinhole above the table and one in each gripper.

Intrinsics are the robot's, scaled to the image size; cameras look straight down, from the heights below.
"""

import numpy as np

from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.sample.world import HANDS, World

SIZES = {"head": 84, "left_wrist": 56, "right_wrist": 56}
"""Height and width in pixels; the robot's cameras have 720 and 480, the same ratio."""
HEAD_HEIGHT = 0.31
WRIST_HEIGHT = 0.26

BUTTON_RADIUS = 0.05
GLOW, GLOW_RADIUS = 0.7, 0.15
"""Buttons are lamps: at their rim they colour the table by this share, which falls with this radius in m."""
COLOURS = {
    "red": (205, 40, 40),
    "blue": (45, 70, 215),
    "left": (240, 215, 60),
    "right": (60, 200, 110),
}
TABLE = (150, 128, 105)
FLOOR = (62, 66, 74)
TABLE_HALF = 0.36
HOUSING = (18, 18, 22)
LENS_RADIUS = 0.18
"""A wrist camera looks out of the gripper's housing, which darkens its corners from this distance in m on."""


def render(world: World) -> dict[str, np.ndarray]:
    """Returns {camera: image uint8 [size, size, 3]} of the world's present state."""
    return {camera: draw(world, camera, *viewpoint) for camera, viewpoint in viewpoints(world).items()}


def viewpoints(world: World) -> dict[str, tuple[np.ndarray, float]]:
    """Returns {camera: ((x, y) in m it looks down on, its height above the table in m)}."""
    wrists = {f"{hand}_wrist": (world.hand_position(hand), WRIST_HEIGHT) for hand in HANDS}
    return {"head": (np.zeros(2), HEAD_HEIGHT), **wrists}


def draw(world: World, camera: str, centre: np.ndarray, height: float) -> np.ndarray:
    """Returns what a camera at `height` m above `centre` (x, y) sees, uint8 [size, size, 3]; +y is up in the image."""
    size = SIZES[camera]
    x, y = pixel_grid(camera, centre, height)
    soft = height / focal_length(camera)

    image = np.empty((size, size, 3), np.float32)
    image[:] = FLOOR
    paint(image, TABLE, np.minimum(TABLE_HALF - np.abs(x), TABLE_HALF - np.abs(y)), soft)
    distances = {name: np.hypot(x - position[0], y - position[1]) for name, position in world.buttons.items()}
    for name, distance in distances.items():
        glow = GLOW * np.exp(-0.5 * np.square(distance / GLOW_RADIUS))
        image += (np.asarray(COLOURS[name], np.float32) - image) * glow[..., None].astype(np.float32)
    for name, distance in distances.items():
        paint(image, COLOURS[name], BUTTON_RADIUS - distance, soft)
    for hand in HANDS:
        dx, dy = x - world.hand_position(hand)[0], y - world.hand_position(hand)[1]
        for side in (-1, 1):  # two finger bars, as far apart as the fingers are open
            bar = side * (0.012 + world.fingers[hand])
            paint(image, COLOURS[hand], np.minimum(0.010 - np.abs(dx - bar), 0.035 - np.abs(dy)), soft)
    image *= world.light
    if camera != "head":
        paint(image, HOUSING, np.hypot(x - centre[0], y - centre[1]) - LENS_RADIUS, soft)
    return np.clip(image, 0, 255).astype(np.uint8)


def pixel_grid(camera: str, centre: np.ndarray, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns where on the table, in m, the pixels of a camera at `height` m above `centre` lie: x [1, s], y [s, 1]."""
    size = SIZES[camera]
    offsets = (np.arange(size) - (size - 1) / 2) * height / focal_length(camera)
    return (centre[0] + offsets)[None, :], (centre[1] - offsets)[:, None]


def paint(image: np.ndarray, colour: tuple[int, int, int], inside: np.ndarray, soft: float) -> None:
    """Blends `colour` in, in place, where `inside` (m, positive within the shape) is above 0; edges are `soft` m."""
    cover = np.clip(inside / soft + 0.5, 0, 1)[..., None].astype(np.float32)
    image += (np.asarray(colour, np.float32) - image) * cover


def focal_length(camera: str) -> float:
    """Returns the focal length in pixels at the size drawn here."""
    spec = next(spec for spec in CAMERAS if spec.name == camera)
    return spec.focal_length * SIZES[camera] / spec.size
