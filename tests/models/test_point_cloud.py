"""The encoder against loops over points, and what its tokens do to the actions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.models.point_cloud import PointNet
from openpi_b1k.sharding import batch_sharding, make_mesh, param_shardings
from tests.models.conftest import CONFIG

WIDTH = 8
NUM_GROUPS = 16


@pytest.fixture(scope="module")
def seeing() -> Model:
    return Model(dataclasses.replace(CONFIG, point_clouds=True))


@pytest.fixture(scope="module")
def seeing_params(seeing, params):
    fresh = jax.jit(seeing.init_params)(jax.random.key(3))
    return params | {"point_cloud": fresh["point_cloud"]}


@pytest.fixture(scope="module")
def points():
    return jax.random.normal(jax.random.key(5), (4, NUM_GROUPS, 9, 3))


@pytest.fixture(scope="module")
def seeing_batch(batch, points):
    return dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, point_cloud=points))


@pytest.fixture(scope="module")
def draws():
    keys = jax.random.split(jax.random.key(7))
    return jax.random.normal(keys[0], (4, 1, 4, 6)), jax.random.uniform(keys[1], (4, 1))


def encoder() -> PointNet:
    with nnx.use_eager_sharding(False):
        return PointNet(WIDTH, rngs=nnx.Rngs(0))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_a_token_is_the_maximum_over_its_groups_points():
    net = encoder()
    points = np.random.default_rng(0).normal(size=(2, 3, 5, 3)).astype(np.float32)
    tokens = net(jnp.asarray(points), dtype=jnp.dtype("float32"), remat="none")
    assert tokens.shape == (2, 3, WIDTH)
    layers = [(np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])) for layer in (
        net.mlp_in, net.mlp_hidden, net.mlp_out)]  # fmt: skip
    for b in range(2):
        for g in range(3):
            features = []
            for point in points[b, g]:
                x = point
                for kernel, bias in layers[:-1]:
                    x = gelu(x @ kernel + bias)
                features.append(x @ layers[-1][0] + layers[-1][1])
            np.testing.assert_allclose(tokens[b, g], np.max(features, axis=0), atol=1e-5)


def test_the_order_of_points_within_a_group_is_void_that_of_groups_is_not():
    net = encoder()
    points = jax.random.normal(jax.random.key(1), (1, 2, 6, 3))
    run = lambda points: net(points, dtype=jnp.dtype("float32"), remat="full")  # noqa: E731
    np.testing.assert_array_equal(run(points), run(points[:, :, ::-1]))
    np.testing.assert_array_equal(run(points)[:, ::-1], run(points[:, ::-1]))
    assert np.abs(run(points) - run(points[:, ::-1])).max() > 0.01


def test_full_size_is_3_1024_1024_width():
    abstract = Model(ModelConfig(point_clouds=True)).abstract_params()["point_cloud"]
    kernels = [abstract[name]["kernel"].shape for name in ("mlp_in", "mlp_hidden", "mlp_out")]
    assert kernels == [(3, 1024), (1024, 1024), (1024, 2048)]


def test_the_prefix_has_16_more_tokens_between_images_and_prompt(seeing, seeing_params, seeing_batch, model, batch):
    plain = {name: value for name, value in seeing_params.items() if name != "point_cloud"}
    without = model.network(plain).embed_prefix(batch.observation)
    prefix = seeing.network(seeing_params).embed_prefix(seeing_batch.observation)
    num_images = 3 * 4  # cameras times patches
    assert prefix.tokens.shape[1] == without.tokens.shape[1] + NUM_GROUPS
    np.testing.assert_array_equal(prefix.tokens[:, :num_images], without.tokens[:, :num_images])
    np.testing.assert_array_equal(prefix.tokens[:, num_images + NUM_GROUPS :], without.tokens[:, num_images:])
    assert prefix.mask[:, num_images : num_images + NUM_GROUPS].all()


def test_points_move_the_actions_of_their_sample_alone(seeing, seeing_params, seeing_batch, draws):
    run = jax.jit(seeing.velocity)
    observation = seeing_batch.observation
    expected = run(seeing_params, observation, *draws)
    moved = dataclasses.replace(observation, point_cloud=observation.point_cloud.at[0].add(0.5))
    difference = np.abs(run(seeing_params, moved, *draws) - expected).max(axis=(1, 2, 3))
    assert difference[0] > 1e-3
    assert (difference[1:] == 0).all()


def test_the_gradient_reaches_every_parameter_of_the_encoder(seeing, seeing_params, seeing_batch, draws):
    gradient = jax.jit(jax.grad(lambda params: seeing.loss_at(params, seeing_batch, *draws)[0]))(seeing_params)
    for leaf in jax.tree.leaves(gradient["point_cloud"]):
        assert np.abs(leaf).max() > 1e-6


def test_four_devices_agree_with_one(seeing, seeing_params, seeing_batch, draws):
    mesh = make_mesh(4)
    split_model = Model(seeing.config, mesh)
    loss = lambda model, params, batch: model.loss_at(params, batch, *draws)[0]  # noqa: E731
    shardings = param_shardings(mesh, seeing_params, seeing.logical_axes())
    placed = jax.device_put(seeing_params, shardings), jax.device_put(seeing_batch, batch_sharding(mesh))
    alone = jax.jit(loss, static_argnums=0)(seeing, seeing_params, seeing_batch)
    np.testing.assert_allclose(jax.jit(loss, static_argnums=0)(split_model, *placed), alone, rtol=1e-5)


def test_other_parameters_of_a_seed_are_those_without_the_encoder(seeing, model):
    key = jax.random.key(0)
    fresh = jax.jit(seeing.init_params)(key)
    del fresh["point_cloud"]
    jax.tree.map(np.testing.assert_array_equal, fresh, jax.jit(model.init_params)(key))


def test_what_does_not_fit_is_refused(seeing, seeing_params, seeing_batch, model, params, batch):
    with pytest.raises(ValueError, match="point cloud: the observation has none, but the model has point_clouds True"):
        seeing.network(seeing_params).embed_prefix(batch.observation)
    with pytest.raises(ValueError, match="the observation has one, but the model has point_clouds False: data"):
        model.network(params).embed_prefix(seeing_batch.observation)


def test_a_masked_segmentation_image_moves_nothing(model, params, batch, draws):
    observation = batch.observation
    run = jax.jit(model.velocity)

    def with_segmentation(image, is_there):
        images = observation.images | {"segmentation": jnp.full((4, 28, 28, 3), image, jnp.uint8)}
        masks = observation.image_masks | {"segmentation": jnp.full(4, is_there)}
        return run(params, dataclasses.replace(observation, images=images, image_masks=masks), *draws)

    absent = with_segmentation(0, False)
    np.testing.assert_array_equal(with_segmentation(128, False), absent)
    np.testing.assert_allclose(absent, run(params, observation, *draws), atol=1e-5)
    assert np.abs(with_segmentation(128, True) - absent).max() > 1e-3
    assert np.abs(with_segmentation(128, True) - with_segmentation(0, True)).max() > 1e-3
