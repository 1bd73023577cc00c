"""Augmentation: against loops over pixels in plain Python, and draws against their distributions."""

import colorsys
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from openpi_b1k import sharding
from openpi_b1k.config.optimization import (
    COLOURS,
    CROP_AND_COLOURS,
    NO_AUGMENTATION,
    UNVARIED,
    AugmentationConfig,
    CameraAugmentation,
)
from openpi_b1k.models import augment as augmentation
from openpi_b1k.models.augment import Colours, Geometry, augment
from openpi_b1k.observation import Observation
from openpi_b1k.transforms import segmentation

CAMERAS = ("head", "left_wrist", "right_wrist")
SIZE = 20
GEOMETRY = CameraAugmentation(crop=0.9, rotation=20.0)
DEFAULT = AugmentationConfig()
compiled_augment = jax.jit(augment, static_argnums=2)


def make_observation(b: int, size: int = SIZE, names: tuple[str, ...] = CAMERAS) -> Observation:
    random = np.random.default_rng(b)
    images = {name: jnp.asarray(random.integers(0, 256, (b, size, size, 3), np.uint8)) for name in names}
    return Observation(
        images=images,
        image_masks=dict.fromkeys(names, jnp.ones(b, bool)),
        state=jnp.zeros((b, 6)),
        prompt_tokens=jnp.zeros((b, 5), int),
        prompt_mask=jnp.ones((b, 5), bool),
    )


def keys_of(b: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), b)


def pixel(image: np.ndarray, row: int, column: int) -> np.ndarray:
    height, width, _ = image.shape
    is_inside = 0 <= row < height and 0 <= column < width
    return image[row, column].astype(float) if is_inside else np.zeros(3)


def place(size: int, crop: int, shift: tuple[float, float], angle: float, row: int, column: int) -> tuple[float, float]:
    """Returns where an output pixel comes from: turn it back, shrink it into the crop, move it to the crop's place."""
    centre = (size - 1) / 2
    turned = complex(column - centre, centre - row) * complex(math.cos(-angle), math.sin(-angle))  # x right, y up
    small = turned * crop / size
    return centre - small.imag + shift[0], centre + small.real + shift[1]


@pytest.mark.parametrize(
    ("shift", "degrees"), [((0.0, 0.0), 0.0), ((1.0, -0.75), 0.0), ((0.0, 0.0), 17.0), ((-0.9, 0.4), -11.0)]
)
def test_resampling_blends_the_four_pixels_around_the_place_a_pixel_comes_from(shift, degrees):
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    geometry = Geometry(jnp.array(shift), jnp.array(math.radians(degrees)))
    blended = np.asarray(augmentation.resampled(jnp.asarray(image), geometry, GEOMETRY))
    nearest = np.asarray(augmentation.resampled(jnp.asarray(image), geometry, GEOMETRY, is_nearest=True))

    for row in range(SIZE):
        for column in range(SIZE):
            y, x = place(SIZE, 18, shift, math.radians(degrees), row, column)
            top, left = math.floor(y), math.floor(x)
            down, right = y - top, x - left
            expected = (
                (1 - down) * (1 - right) * pixel(image, top, left)
                + (1 - down) * right * pixel(image, top, left + 1)
                + down * (1 - right) * pixel(image, top + 1, left)
                + down * right * pixel(image, top + 1, left + 1)
            )
            np.testing.assert_allclose(blended[row, column], expected, atol=2e-2)
            if min(abs(y % 1 - 0.5), abs(x % 1 - 0.5)) > 1e-4:
                np.testing.assert_array_equal(nearest[row, column], pixel(image, round(y), round(x)))


def test_resampling_with_nothing_to_do_gives_the_image():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    still = Geometry(jnp.zeros(2), jnp.zeros(()))
    np.testing.assert_array_equal(augmentation.resampled(jnp.asarray(image), still, UNVARIED), image)


def test_a_quarter_turn_is_counterclockwise():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    geometry = Geometry(jnp.zeros(2), jnp.array(math.pi / 2))
    turned = augmentation.resampled(jnp.asarray(image), geometry, UNVARIED, is_nearest=True)
    np.testing.assert_array_equal(turned, np.rot90(image))


def change(rgb: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Returns one pixel in other colours, by the standard library's HSV."""
    h, s, v = colorsys.rgb_to_hsv(*(rgb / 255))
    v = v * (1 + brightness) if brightness < 0 else 1 - (1 - v) * (1 - brightness)
    steep = math.tan((1 + contrast) * math.pi / 4)
    knee = steep / (2 * (1 + steep))
    v = np.interp(v, [0, knee, 1 - knee, 1], [0, knee / steep, 1 - knee / steep, 1])
    return 255 * np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(1.0, s * (1 + saturation)), v))


@pytest.mark.parametrize(
    "amounts",
    [
        (0.3, 0.0, 0.0, 0.0),
        (-0.3, 0.0, 0.0, 0.0),
        (0.0, 0.4, 0.0, 0.0),
        (0.0, -0.4, 0.0, 0.0),
        (0.0, 0.0, 0.5, 0.0),
        (0.0, 0.0, -0.5, 0.0),
        (0.0, 0.0, 0.0, 0.1),
        (0.0, 0.0, 0.0, -0.6),
        (-0.2, 0.3, 0.4, -0.08),
    ],
)
def test_colours_change_as_in_hsv(amounts):
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image[0] = [[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    image[1, :3] = [[9, 9, 200], [200, 9, 200], [200, 200, 9]]
    expected = [[change(rgb, *amounts) for rgb in row] for row in image]
    colours = Colours(*(jnp.array(amount) for amount in amounts), is_changed=jnp.array(True))
    changed = augmentation.recoloured(jnp.asarray(image, jnp.float32), colours)
    np.testing.assert_allclose(changed, expected, atol=2e-2)


@pytest.mark.parametrize("amount", [-1.0, 1.0])
def test_the_strongest_changes_stay_within_their_range(amount):
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), jnp.float32)
    for index in range(4):
        amounts = [jnp.array(amount if index == other else 0.0) for other in range(4)]
        changed = np.asarray(augmentation.recoloured(image, Colours(*amounts, is_changed=jnp.array(True))))
        assert changed.min() >= -1e-3
        assert changed.max() <= 255 + 1e-3


def test_colours_that_do_not_change_keep_every_bit():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), jnp.float32)
    colours = Colours(*(jnp.array(0.3) for _ in range(4)), is_changed=jnp.array(False))
    np.testing.assert_array_equal(augmentation.recoloured(image, colours), image)


def is_uniform(values: np.ndarray, most: float) -> bool:
    """Returns whether values are plausibly uniform in [-most, most]: range, and the empirical distribution's gap."""
    ranks = np.sort((values + most) / (2 * most))
    assert ranks[0] >= 0
    assert ranks[-1] <= 1
    n = len(ranks)
    return np.abs(ranks - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # Kolmogorov's, at 0.1 %


def test_draws_are_openpis():
    geometry_keys, colour_keys = jax.vmap(jax.random.split)(keys_of(4000)).T
    geometry = jax.vmap(lambda key: augmentation.draw_geometry(key, CROP_AND_COLOURS, 224, 224))(geometry_keys)
    assert is_uniform(np.asarray(geometry.shift[:, 0]), 6.0)  # a crop of int(0.95 * 224) = 212 has 12 pixels of room
    assert is_uniform(np.asarray(geometry.shift[:, 1]), 6.0)
    assert is_uniform(np.rad2deg(geometry.angle), 5.0)
    colours = jax.vmap(lambda key: augmentation.draw_colours(key, COLOURS))(colour_keys)
    strengths = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
    for name, strength in strengths.items():
        assert is_uniform(np.asarray(getattr(colours, name)), strength), name
    assert abs(np.mean(colours.is_changed) - 0.5) < 4 * 0.5 / math.sqrt(4000)
    columns = [*geometry.shift.T, geometry.angle, *(getattr(colours, name) for name in strengths), colours.is_changed]
    correlations = np.corrcoef(np.asarray(columns, float)) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4 / math.sqrt(4000)


def test_only_what_is_asked_for_is_drawn():
    still = jax.vmap(lambda key: augmentation.draw_geometry(key, UNVARIED, 224, 200))(keys_of(8))
    assert not still.shift.any()
    assert not still.angle.any()
    only_hue = jax.vmap(lambda key: augmentation.draw_colours(key, CameraAugmentation(hue=0.2)))(keys_of(8))
    for name in ("brightness", "contrast", "saturation"):
        assert not getattr(only_hue, name).any()
    assert only_hue.hue.any()


def test_a_crop_of_a_high_image_has_its_own_room_on_each_axis():
    geometry = jax.vmap(lambda key: augmentation.draw_geometry(key, CameraAugmentation(crop=0.5), 40, 10))(
        keys_of(2000)
    )
    assert is_uniform(np.asarray(geometry.shift[:, 0]), 10.0)
    assert is_uniform(np.asarray(geometry.shift[:, 1]), 2.5)


def test_by_default_the_head_is_moved_and_coloured_and_the_wrists_are_coloured():
    observation = make_observation(64)
    varied = compiled_augment(observation, keys_of(64), DEFAULT)
    same = {
        name: np.array([(varied.images[name][i] == observation.images[name][i]).all() for i in range(64)])
        for name in CAMERAS
    }
    assert not same["head"].any()
    for name in CAMERAS[1:]:
        assert 16 < same[name].sum() < 48  # half of them, give or take four standard deviations
    assert (same["left_wrist"] != same["right_wrist"]).any()
    assert all(image.dtype == jnp.uint8 for image in varied.images.values())


def test_the_whole_is_its_parts_with_the_draws_of_the_row():
    observation = make_observation(8)
    varied = compiled_augment(observation, keys_of(8), DEFAULT)

    @jax.jit
    def head_and_wrist(head: jax.Array, wrist: jax.Array, key: jax.Array) -> list[jax.Array]:
        geometry_key, colour_key = jax.random.split(jax.random.fold_in(key, 0))
        geometry = augmentation.draw_geometry(geometry_key, DEFAULT.head, SIZE, SIZE)
        moved = augmentation.resampled(head, geometry, DEFAULT.head)
        wrist_key = jax.random.split(jax.random.fold_in(key, 2))[1]
        return [
            augmentation.recoloured(moved, augmentation.draw_colours(colour_key, DEFAULT.head)),
            augmentation.recoloured(
                wrist.astype(jnp.float32), augmentation.draw_colours(wrist_key, DEFAULT.right_wrist)
            ),
        ]

    for row, key in enumerate(keys_of(8)):
        expected = head_and_wrist(observation.images["head"][row], observation.images["right_wrist"][row], key)
        for name, pixels in zip(("head", "right_wrist"), expected, strict=True):
            differences = np.asarray(varied.images[name][row], int) - np.round(np.asarray(pixels))
            assert np.abs(differences).max() <= 1  # a half may round either way


def test_images_vary_by_themselves():
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, axis=0), make_observation(1))
    repeated = dataclasses.replace(repeated, images=dict.fromkeys(CAMERAS, repeated.images["head"]))
    always = dataclasses.replace(COLOURS, probability=1.0)
    config = AugmentationConfig(always, always, always)
    varied = compiled_augment(repeated, keys_of(8), config).images
    everything = np.concatenate([np.asarray(varied[name]).reshape(8, -1) for name in CAMERAS])
    assert len(np.unique(everything, axis=0)) == 8 * 3

    others = keys_of(8, seed=1).at[3].set(keys_of(8)[3])
    again = compiled_augment(repeated, others, config).images
    for name in CAMERAS:  # row 3 depends on no other row's key
        is_same = (varied[name] == again[name]).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(is_same, np.arange(8) == 3)


def test_a_camera_varies_the_same_way_whichever_others_there_are():
    observation = make_observation(8)
    alone = dataclasses.replace(observation, images={"right_wrist": observation.images["right_wrist"]})
    np.testing.assert_array_equal(
        compiled_augment(alone, keys_of(8), DEFAULT).images["right_wrist"],
        compiled_augment(observation, keys_of(8), DEFAULT).images["right_wrist"],
    )


def test_what_does_not_vary_is_not_computed():
    only_head = AugmentationConfig(CROP_AND_COLOURS, UNVARIED, dataclasses.replace(COLOURS, probability=0.0))

    def replaced(observation: Observation, keys: jax.Array, config: AugmentationConfig) -> list[jax.Array]:
        varied = augment(observation, keys, config)
        return [image for name, image in varied.images.items() if image is not observation.images[name]]

    observation, keys = make_observation(2), keys_of(2)
    assert len(jax.eval_shape(lambda *arrays: replaced(*arrays, only_head), observation, keys)) == 1
    operations = jax.make_jaxpr(lambda *arrays: augment(*arrays, NO_AUGMENTATION))(observation, keys)
    assert not operations.eqns


def test_masked_images_and_all_that_is_no_image_stay():
    observation = dataclasses.replace(make_observation(4), point_cloud=jnp.ones((4, 2, 3, 3)))
    observation.image_masks["head"] = jnp.array([True, False, True, False])
    varied = compiled_augment(observation, keys_of(4), DEFAULT)
    is_same = (varied.images["head"] == observation.images["head"]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(is_same, [False, True, False, True])
    for field in dataclasses.fields(Observation):
        if field.name != "images":
            jax.tree.map(np.testing.assert_array_equal, getattr(varied, field.name), getattr(observation, field.name))


def test_the_segmentation_image_moves_with_the_head_and_keeps_its_levels():
    assert augmentation.SEGMENTATION == segmentation.IMAGE
    labels = np.random.default_rng(0).integers(0, 9, (4, SIZE, SIZE), np.uint8)
    grey = jnp.asarray(np.repeat(segmentation.LEVELS[labels][..., None], 3, axis=-1))
    observation = make_observation(4, names=(*CAMERAS, "segmentation"))
    observation.images["segmentation"] = grey
    varied = compiled_augment(observation, keys_of(4), DEFAULT).images["segmentation"]
    assert set(np.unique(varied)) <= set(segmentation.LEVELS.tolist())
    for row, key in enumerate(keys_of(4)):
        geometry_key = jax.random.split(jax.random.fold_in(key, 0))[0]
        head = augmentation.draw_geometry(geometry_key, CROP_AND_COLOURS, SIZE, SIZE)
        expected = augmentation.resampled(grey[row], head, CROP_AND_COLOURS, is_nearest=True)
        np.testing.assert_array_equal(varied[row], expected)
    alone = dataclasses.replace(observation, images={"segmentation": grey})
    assert augment(alone, keys_of(4), AugmentationConfig(head=COLOURS)).images["segmentation"] is grey


def test_an_image_of_an_unknown_camera_is_refused():
    observation = make_observation(1, names=("head", "chest"))
    with pytest.raises(KeyError, match="no augmentation for the image 'chest'; known images: head, left_wrist, right"):
        compiled_augment(observation, keys_of(1), DEFAULT)


def test_each_device_varies_its_own_rows():
    mesh = sharding.make_mesh(2)
    by_rows = sharding.batch_sharding(mesh)
    observation, keys = make_observation(8), keys_of(8)
    placed, placed_keys = jax.device_put((observation, keys), by_rows)
    compiled = compiled_augment.lower(placed, placed_keys, DEFAULT).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in compiled.as_text()
    varied = compiled(placed, placed_keys)
    for name, image in compiled_augment(observation, keys, DEFAULT).images.items():
        assert varied.images[name].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 4)
        # Compiled alone or with three other devices, a pixel that is nearly a half may round either way.
        differences = np.asarray(varied.images[name], int) - np.asarray(image, int)
        assert np.abs(differences).max() <= 1
        assert np.mean(differences != 0) < 1e-3
