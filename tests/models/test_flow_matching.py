import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.models.flow_matching import (
    flow_path,
    flow_times,
    integrate,
    masked_mean_loss,
    masked_squared_errors,
    sample_time,
)


def test_time_one_is_noise_and_zero_is_the_action():
    actions, noise = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 5))
    time = jnp.tile(jnp.array([0.0, 1.0]), (3, 1))
    noisy, target = flow_path(actions, noise, time)
    np.testing.assert_array_equal(noisy[:, 0], actions[:, 0])
    np.testing.assert_array_equal(noisy[:, 1], noise[:, 1])
    np.testing.assert_array_equal(target, noise - actions)


def test_times_follow_the_beta_distribution():
    times = np.sort(np.asarray(sample_time(jax.random.key(0), (100, 200))).ravel())
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    distribution = ((times - 0.001) / 0.999) ** 1.5  # of Beta(1.5, 1)
    assert np.abs(distribution - np.arange(times.size) / times.size).max() < 0.012  # 1.6 / sqrt(n): Kolmogorov-Smirnov


def test_the_loss_counts_what_the_mask_says():
    random = np.random.default_rng(0)
    velocity, target = random.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
    mask = random.random((3, 4, 5)) < 0.5
    mask[:, :, 2] = False
    loss, per_dim = masked_mean_loss(*map(jnp.asarray, (velocity, target, mask)))
    error = (velocity - target) ** 2
    counted = np.broadcast_to(mask[:, None], error.shape)
    np.testing.assert_allclose(loss, error[counted].mean(), rtol=1e-5)
    for dim in range(5):
        expected = error[..., dim][counted[..., dim]].mean() if dim != 2 else 0.0
        np.testing.assert_allclose(per_dim[dim], expected, rtol=1e-5)


def test_errors_of_a_sample_are_its_own_and_add_up_to_the_loss():
    random = np.random.default_rng(0)
    velocity, target = random.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
    mask = random.random((3, 4, 5)) < 0.5
    mask[1] = False
    errors, counts = masked_squared_errors(*map(jnp.asarray, (velocity, target, mask)))
    for sample in range(3):
        for dim in range(5):
            counted = (velocity - target)[sample, :, mask[sample, :, dim], dim]
            np.testing.assert_allclose(errors[sample, dim], (counted**2).sum(), rtol=1e-5)
            assert counts[sample, dim] == counted.size == 2 * mask[sample, :, dim].sum()
    loss, _ = masked_mean_loss(*map(jnp.asarray, (velocity, target, mask)))
    np.testing.assert_allclose(loss, errors.sum() / counts.sum(), rtol=1e-6)


def test_a_mask_of_ones_gives_the_plain_mean_and_of_zeros_zero():
    velocity, target = jax.random.normal(jax.random.key(0), (2, 3, 1, 4, 5))
    loss, _ = masked_mean_loss(velocity, target, jnp.ones((3, 4, 5), bool))
    np.testing.assert_allclose(loss, np.mean((velocity - target) ** 2), rtol=1e-6)
    loss, per_dim = masked_mean_loss(velocity, target, jnp.zeros((3, 4, 5), bool))
    assert loss == 0
    assert (per_dim == 0).all()


def test_what_does_not_count_may_be_anything():
    target = jnp.zeros((1, 1, 2, 2))
    velocity = jnp.array([[1.0, jnp.inf], [jnp.nan, 2.0]])[None, None]
    mask = jnp.array([[[True, False], [False, True]]])
    assert masked_mean_loss(velocity, target, mask)[0] == 2.5


@pytest.mark.parametrize("num_flow_steps", [1, 7, 10])
def test_integration_of_a_straight_path_is_exact(num_flow_steps):
    actions, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    chunk = integrate(lambda x, time: noise - actions, noise, num_flow_steps=num_flow_steps)
    np.testing.assert_allclose(chunk, actions, atol=1e-5)


def test_integration_evaluates_at_the_start_of_each_step():
    chunk = integrate(jnp.full_like, jnp.zeros((1, 1, 1)), num_flow_steps=4)
    np.testing.assert_allclose(chunk, -(1 + 0.75 + 0.5 + 0.25) / 4, atol=1e-6)


@pytest.mark.parametrize("num_flow_steps", [1, 4, 7, 10, 50])
def test_flow_times_are_those_of_the_integration_to_the_bit(num_flow_steps):
    seen = []

    def velocity(noisy_actions, time, known):
        seen.append((float(time), float(known)))
        return 0 * noisy_actions

    times = flow_times(num_flow_steps)
    assert times.dtype == np.float32
    with jax.disable_jit():
        integrate(velocity, jnp.zeros((1, 1, 1)), num_flow_steps=num_flow_steps, per_step=(times,))
    assert seen == [(float(time), float(time)) for time in times]


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_flow_steps must be at least 1; got 0"):
        integrate(lambda x, time: x, jnp.zeros((1, 1, 1)), num_flow_steps=0)
