"""The picture of the first batch: what is in it, what it follows from, and where its augmented images come from."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.config.optimization import AugmentationConfig
from openpi_b1k.models.augment import augment
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.training import preview
from openpi_b1k.training.state import augmentation_key

CAMERAS = ("head", "left_wrist", "right_wrist")
ROBOT = r1pro("like_action")
BEFORE, AFTER = (10, 200, 30), (201, 20, 99)
CONFIG = dataclasses.replace(debug.CONFIG, augmentation=AugmentationConfig(), seed=3)
HORIZON = 8


def make_batch(b: int) -> Batch:
    random = np.random.default_rng(0)
    observation = Observation(
        images={name: np.broadcast_to(np.uint8(BEFORE), (b, 14, 14, 3)) for name in CAMERAS},
        image_masks=dict.fromkeys(CAMERAS, np.ones(b, bool)),
        state=random.uniform(-1, 1, (b, 32)).astype(np.float32),
        prompt_tokens=np.arange(5 * b, dtype=np.int32).reshape(b, 5) + 1,
        prompt_mask=np.tile(np.arange(5) < 3, (b, 1)),
    )
    actions = random.uniform(-1, 1, (b, HORIZON, 32)).astype(np.float32)
    mask = np.tile((np.arange(HORIZON) < 6)[:, None] & (np.arange(32) < ROBOT.action.size), (b, 1, 1))
    return Batch(observation, actions, mask, source=np.zeros(b, np.int32))


def recoloured(batch: Batch) -> Observation:
    images = {name: np.full_like(images, AFTER) for name, images in batch.observation.images.items()}
    return dataclasses.replace(batch.observation, images=images)


def decode(ids: list[int]) -> str:
    return f"Task: tidy for $5 or 6$, {ids}"


def picture_of(path: pathlib.Path, batch: Batch) -> np.ndarray:
    written = preview.write_preview(path / "run" / preview.FILE, batch, recoloured(batch), ROBOT, decode)
    assert written == path / "run" / preview.FILE
    with Image.open(written) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def areas(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Returns how many separate runs of more than 50 pixels of a colour the middles of the rows and columns have."""
    is_it = (picture == colour).all(axis=-1)
    changes = np.diff(np.pad(is_it, ((0, 0), (1, 1))).astype(int), axis=1)
    runs = [np.flatnonzero(row == -1) - np.flatnonzero(row == 1) for row in changes]
    per_row = np.array([(lengths > 50).sum() for lengths in runs])
    starts = np.flatnonzero(np.diff(np.pad(per_row > 0, 1).astype(int)) == 1)
    return sum(per_row[start + 5] for start in starts)


@pytest.mark.parametrize(("b", "shown"), [(1, 1), (3, 3), (6, 4)])
def test_each_image_is_shown_before_and_after(tmp_path, b, shown):
    picture = picture_of(tmp_path, make_batch(b))
    assert areas(picture, BEFORE) == 3 * shown
    assert areas(picture, AFTER) == 3 * shown


def test_prompts_are_decoded_without_padding(tmp_path):
    seen: list[list[int]] = []

    def remember(ids: list[int]) -> str:
        seen.append(ids)
        return ""

    batch = make_batch(2)
    preview.write_preview(tmp_path / preview.FILE, batch, recoloured(batch), ROBOT, remember)
    assert seen == [[1, 2, 3], [6, 7, 8]]


def test_the_picture_follows_from_what_the_loss_is_made_of_and_nothing_else(tmp_path):
    batch = make_batch(1)
    picture = picture_of(tmp_path, batch)

    def with_action(step: int, entry: int) -> Batch:
        actions = batch.actions.copy()
        actions[0, step, entry] = 3.0
        return dataclasses.replace(batch, actions=actions)

    np.testing.assert_array_equal(picture_of(tmp_path, with_action(7, 0)), picture)  # past the episode's end
    np.testing.assert_array_equal(picture_of(tmp_path, with_action(0, 31)), picture)  # padding
    for name in ROBOT.action.names:
        last = ROBOT.action.slice(name).stop - 1
        assert (picture_of(tmp_path, with_action(5, last)) != picture).any(), name
    state = batch.observation.state.copy()
    state[0, ROBOT.state.slice("torso").start] = 2.0
    moved = dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, state=state))
    assert (picture_of(tmp_path, moved) != picture).any()
    masks = batch.observation.image_masks | {"head": np.zeros(1, bool)}
    absent = dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, image_masks=masks))
    assert (picture_of(tmp_path, absent) != picture).any()


def test_a_batch_on_devices_gives_the_same_picture(tmp_path):
    batch = make_batch(8)
    on_devices = jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh(2)))
    np.testing.assert_array_equal(picture_of(tmp_path, on_devices), picture_of(tmp_path, batch))
    for given, expected in zip(jax.tree.leaves(preview.first_rows(on_devices, 5)), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(given, expected[:5])


def test_augmented_rows_are_those_of_the_step():
    batch = make_batch(8)
    random = np.random.default_rng(1)
    images = {name: random.integers(0, 256, (8, 14, 14, 3), np.uint8) for name in CAMERAS}
    batch = dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, images=images))
    on_devices = jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh(1)))
    rows = preview.augmented_rows(on_devices, CONFIG, 7)
    keys = jax.random.split(augmentation_key(CONFIG.seed, jnp.int32(7)), 8)
    whole = jax.jit(augment, static_argnums=2)(batch.observation, keys, CONFIG.augmentation)
    for name in CAMERAS:
        differences = np.asarray(rows.images[name], int) - np.asarray(whole.images[name][:4], int)
        assert np.abs(differences).max() <= 1  # a half may round either way
        assert (rows.images[name] != images[name][:4]).any()
