"""Random variation of training images on the devices: crop, turn and colours, each image by draws of its own.

    input pixel = shift + crop * rotation(output pixel), both counted from their image's centre

Crop, enlargement and rotation are this one map, so an image is resampled once. Colours change in HSV. All of it is
arithmetic on single pixels after one gather, which the compiler can fuse from uint8 to uint8.

Point clouds and masked images stay as they are. The segmentation image is cropped and turned with the camera it is of.
Source: augmax 0.3.4 as openpi `models/model.py` at 15a9616 calls it. On purpose differ: a changed saturation counts,
which augmax computes and drops; wrists draw apart, which openpi gives one key; pixels are rounded to uint8 at the end.
"""

import dataclasses

import jax
import jax.numpy as jnp

from openpi_b1k.config.data import EXTRA_CAMERA
from openpi_b1k.config.optimization import AugmentationConfig, CameraAugmentation
from openpi_b1k.observation import Observation
from openpi_b1k.typing import Array, Bool, Float, PRNGKeyArray, UInt8, typecheck

SEGMENTATION = "segmentation"
"""Name of the image whose grey levels are labels: of the head camera, never blended, never coloured."""
CAMERAS = tuple(field.name for field in dataclasses.fields(AugmentationConfig))
MIN_SLOPE_ANGLE = 1e-3  # rad: contrast is a slope's angle in (0, pi/2), at whose ends the slope is none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the pixels of an image come from."""

    shift: Float[Array, "*b 2"]
    """The crop's centre from the image's, down and right, in pixels."""
    angle: Float[Array, "*b"]
    """rad; what is seen turns counterclockwise where it is positive."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Colours:
    """How the colours of an image change; all 0 changes nothing."""

    brightness: Float[Array, "*b"]
    """In [-1, 1]: 1 makes everything white or a full colour, -1 black."""
    contrast: Float[Array, "*b"]
    """In [-1, 1]: 1 makes the value of each pixel 0 or 1, -1 makes it 0.5."""
    saturation: Float[Array, "*b"]
    """In [-1, 1]: saturation is multiplied by 1 + this, up to full colours; grey stays grey."""
    hue: Float[Array, "*b"]
    """Part of a turn of the colour wheel."""
    is_changed: Bool[Array, "*b"]
    """Whether any of this is done."""


def augment(observation: Observation, keys: PRNGKeyArray, config: AugmentationConfig) -> Observation:
    """Returns the observation with varied images, uint8 as before; a camera that does not vary keeps its array.

    Args:
        observation: of a batch.
        keys: one for each of its rows, [b]; a row's images depend on its own key alone.
        config: what varies, and how much, per camera.

    Raises:
        KeyError: there is an image of a camera that the config does not know.
    """
    images = {name: _of_camera(observation, name, keys, config) for name in observation.images}
    return dataclasses.replace(observation, images=images)


def variation(name: str, config: AugmentationConfig) -> CameraAugmentation:
    """Returns how the images called `name` vary: the segmentation image as those of its camera, less the colours.

    Raises:
        KeyError: the config does not know them.
    """
    if name == SEGMENTATION:
        return dataclasses.replace(variation(EXTRA_CAMERA, config), probability=0.0)
    if name not in CAMERAS:
        raise KeyError(f"no augmentation for the image {name!r}; known images: {', '.join((*CAMERAS, SEGMENTATION))}")
    return getattr(config, name)  # the config has a field for each camera


def moves_pixels(camera: CameraAugmentation) -> bool:
    """Returns whether images are cropped or turned."""
    return camera.crop < 1 or camera.rotation > 0


def changes_colours(camera: CameraAugmentation) -> bool:
    """Returns whether colours may change."""
    return camera.probability > 0 and max(camera.brightness, camera.contrast, camera.saturation, camera.hue) > 0


def cropped_size(size: int, camera: CameraAugmentation) -> int:
    """Returns how many of `size` pixels a crop keeps: the part as a whole number, at least one."""
    return max(1, int(size * camera.crop))


def draw_geometry(key: PRNGKeyArray, camera: CameraAugmentation, height: int, width: int) -> Geometry:
    """Returns a crop uniform over all places within the image, and an angle uniform in [-rotation, rotation]."""
    shift_key, angle_key = jax.random.split(key)
    room = jnp.array([size - cropped_size(size, camera) for size in (height, width)], jnp.float32) / 2
    angle = jnp.deg2rad(jax.random.uniform(angle_key, (), minval=-camera.rotation, maxval=camera.rotation))
    return Geometry(jax.random.uniform(shift_key, (2,), minval=-room, maxval=room), angle)


def draw_colours(key: PRNGKeyArray, camera: CameraAugmentation) -> Colours:
    """Returns changes that are each uniform in [-strength, strength], and with the camera's probability whether any."""
    *keys, changed_key = jax.random.split(key, 5)
    strengths = (camera.brightness, camera.contrast, camera.saturation, camera.hue)
    drawn = [jax.random.uniform(key, (), minval=-most, maxval=most) for key, most in zip(keys, strengths, strict=True)]
    return Colours(*drawn, is_changed=jax.random.bernoulli(changed_key, camera.probability))


@typecheck
def resampled(
    image: UInt8[Array, "h w 3"], geometry: Geometry, camera: CameraAugmentation, *, is_nearest: bool = False
) -> Float[Array, "h w 3"]:
    """Returns an image cropped, enlarged and turned, in [0, 255]; black where it lies outside of the given one.

    Args:
        image: of any size.
        geometry: of this image.
        camera: for the size of the crop.
        is_nearest: whether a pixel is the nearest of the image instead of four of them blended.
    """
    height, width, _ = image.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    cos, sin = jnp.cos(geometry.angle), jnp.sin(geometry.angle)
    from_y = (cos * y + sin * x) * (cropped_size(height, camera) / height) + geometry.shift[0] + (height - 1) / 2
    from_x = (cos * x - sin * y) * (cropped_size(width, camera) / width) + geometry.shift[1] + (width - 1) / 2
    if is_nearest:
        return _pixels(image, jnp.floor(from_y + 0.5), jnp.floor(from_x + 0.5))
    top, left = jnp.floor(from_y), jnp.floor(from_x)
    down, right = (from_y - top)[..., None], (from_x - left)[..., None]
    upper = (1 - right) * _pixels(image, top, left) + right * _pixels(image, top, left + 1)
    lower = (1 - right) * _pixels(image, top + 1, left) + right * _pixels(image, top + 1, left + 1)
    return (1 - down) * upper + down * lower


def _pixels(image: Array, row: Array, column: Array) -> Array:
    """Returns the pixels at whole-numbered places as float32, black outside of the image."""
    height, width, _ = image.shape
    is_inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    rows = jnp.clip(row, 0, height - 1).astype(jnp.int32)
    columns = jnp.clip(column, 0, width - 1).astype(jnp.int32)
    return jnp.where(is_inside[..., None], image[rows, columns].astype(jnp.float32), 0.0)


@typecheck
def recoloured(image: Float[Array, "h w 3"], colours: Colours) -> Float[Array, "h w 3"]:
    """Returns an image, [0, 255] like the given one, with other brightness, contrast, hue and saturation, in HSV."""
    red, green, blue = (image[..., channel] / 255 for channel in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    sector = jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sector = jnp.where(value == red, (green - blue) / divisor, sector)  # 0 red, 2 green, 4 blue, 6 red again
    saturation = chroma / jnp.where(value > 0, value, 1.0)

    value = contrasted(brightened(value, colours.brightness), colours.contrast)
    sector = sector + 6 * colours.hue
    saturation = jnp.clip(saturation * (1 + colours.saturation), 0, 1)
    distances = [jnp.mod(offset + sector, 6) for offset in (5, 3, 1)]
    channels = [value * (1 - saturation * jnp.clip(jnp.minimum(far, 4 - far), 0, 1)) for far in distances]
    return jnp.where(colours.is_changed, 255 * jnp.stack(channels, axis=-1), image)


def brightened(value: Array, amount: Array) -> Array:
    """Returns values in [0, 1] moved by the part |amount| of their way to 1, or to 0 if it is negative."""
    return jnp.where(amount < 0, value * (1 + amount), value + amount * (1 - value))


def contrasted(value: Array, amount: Array) -> Array:
    """Returns values in [0, 1] on a bent line through (0, 0), (0.5, 0.5) and (1, 1).

    Its slope is s = tan((1 + amount) * 45 degrees) in the middle and 1 / s at both ends.
    """
    angle = (1 + amount) * (jnp.pi / 4)
    slope = jnp.tan(jnp.clip(angle, MIN_SLOPE_ANGLE, jnp.pi / 2 - MIN_SLOPE_ANGLE))
    bend = slope / (2 * (1 + slope))
    middle = slope * (value - 0.5) + 0.5
    return jnp.where(value < bend, value / slope, jnp.where(value > 1 - bend, 1 - (1 - value) / slope, middle))


def _of_camera(observation: Observation, name: str, keys: PRNGKeyArray, config: AugmentationConfig) -> Array:
    """Returns the images called `name`, uint8 [b, h, w, 3], varied where they are there."""
    images, camera = observation.images[name], variation(name, config)
    if not moves_pixels(camera) and not changes_colours(camera):
        return images

    def varied(image: Array, key: PRNGKeyArray, is_there: Array) -> Array:
        # Counted over all cameras: draws do not depend on which of them there are, and a label's are its camera's.
        key = jax.random.fold_in(key, CAMERAS.index(EXTRA_CAMERA if name == SEGMENTATION else name))
        geometry_key, colour_key = jax.random.split(key)
        pixels = image.astype(jnp.float32)
        if moves_pixels(camera):
            geometry = draw_geometry(geometry_key, camera, *image.shape[:2])
            pixels = resampled(image, geometry, camera, is_nearest=name == SEGMENTATION)
        if changes_colours(camera):
            pixels = recoloured(pixels, draw_colours(colour_key, camera))
        return jnp.where(is_there, jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8), image)

    return jax.vmap(varied)(images, keys, observation.image_masks[name])
