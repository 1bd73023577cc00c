"""The toy flow: actions of each entry are normal around `MEAN` with deviation `SPREAD`, of which all is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.models.flow_matching import integrate
from openpi_b1k.models.realtime import RealTimeGuide, guidance_weight, soft_mask

SHAPE = (3, 8, 4)
MEAN, SPREAD = 0.7, 1.0
STEPS = 10


def slope(time):
    """Returns by how much the clean actions follow the noisy ones, the Jacobian of the toy flow."""
    return (1 - time) * SPREAD**2 / ((1 - time) ** 2 * SPREAD**2 + time**2)


def toy_velocity(noisy_actions, time):
    """Returns the velocity of the normal distribution: noise less actions, both as expected from their mixture."""
    clean = MEAN + slope(time) * (noisy_actions - (1 - time) * MEAN)
    noise = time / ((1 - time) ** 2 * SPREAD**2 + time**2) * (noisy_actions - (1 - time) * MEAN)
    return noise - clean


def coupled_velocity(noisy_actions, time):
    """Returns a velocity in which steps and entries of a sample depend on each other, and not linearly."""
    mixed = jnp.einsum("ij,bjd->bid", MIXING, jnp.tanh(noisy_actions))
    return mixed * (1 + time) + 0.3 * jnp.roll(noisy_actions, 1, axis=-1)


MIXING = jnp.asarray(np.random.default_rng(3).normal(size=(SHAPE[1], SHAPE[1])) / 4, jnp.float32)


def case(seed=0):
    noise, actions = np.random.default_rng(seed).normal(size=(2, *SHAPE)).astype(np.float32)
    return jnp.asarray(noise), jnp.asarray(actions)


def guide_of(actions, mask, max_weight=5.0):
    weights = jnp.broadcast_to(jnp.asarray(mask)[:, None], SHAPE)
    return RealTimeGuide(actions, weights, max_weight=max_weight)


def weight_by_hand(time, bound):
    if time in (0, 1):
        return bound
    return min(bound, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


def toy_sampling_by_hand(noise, actions, mask, bound):
    """Returns what guided sampling of the toy flow gives, entry by entry in float64."""
    result = np.array(noise, np.float64)
    for index, _ in np.ndenumerate(result):
        x, y, w = result[index], float(actions[index]), float(mask[index[1]])
        for step in range(STEPS):
            time = 1 - step / STEPS
            variance = (1 - time) ** 2 * SPREAD**2 + time**2
            clean = MEAN + (1 - time) * SPREAD**2 / variance * (x - (1 - time) * MEAN)
            noise_part = time / variance * (x - (1 - time) * MEAN)
            jacobian = (1 - time) * SPREAD**2 / variance
            x -= (noise_part - clean - weight_by_hand(time, bound) * jacobian * w * (y - clean)) / STEPS
        result[index] = x
    return result


@pytest.mark.parametrize(("delay", "overlap", "bound"), [(2, 6, 5.0), (0, 5, 2.0), (3, 3, 5.0), (8, 8, 10.0)])
def test_guided_sampling_of_the_toy_flow_is_the_one_by_hand(delay, overlap, bound):
    noise, actions = case()
    mask = soft_mask(SHAPE[1], delay=delay, overlap=overlap)
    chunk = integrate(toy_velocity, noise, num_flow_steps=STEPS, guide=guide_of(actions, mask, bound))
    np.testing.assert_allclose(chunk, toy_sampling_by_hand(noise, actions, mask, bound), rtol=0, atol=2e-5)


@pytest.mark.parametrize("time", [1.0, 0.6, 0.1])
def test_the_guided_velocity_by_the_whole_jacobian(time):
    noisy, actions = case(1)
    mask = soft_mask(SHAPE[1], delay=2, overlap=6)
    guided = guide_of(actions, mask).velocity(coupled_velocity)(noisy, jnp.float32(time))

    def clean(x):
        return x - time * coupled_velocity(x, time)

    for sample in range(SHAPE[0]):
        size = SHAPE[1] * SHAPE[2]
        jacobian = np.asarray(jax.jacobian(lambda x: clean(x[None])[0])(noisy[sample])).reshape(size, size)
        error = (mask[:, None] * (actions[sample] - clean(noisy[sample][None])[0])).reshape(size)
        pull = (error @ jacobian).reshape(SHAPE[1:])
        velocity = coupled_velocity(noisy[sample][None], time)[0]
        expected = velocity - weight_by_hand(time, 5.0) * pull
        np.testing.assert_allclose(guided[sample], expected, rtol=0, atol=1e-4)


def test_fixed_actions_are_met_within_the_bound_soft_ones_nearly_and_free_ones_not_at_all():
    """On the toy flow with 10 steps and weight 5, 0.05 of the noise and 0.015 of the way from the mean are left."""
    noise, actions = case()
    mask = soft_mask(SHAPE[1], delay=3, overlap=6)
    free = np.asarray(integrate(toy_velocity, noise, num_flow_steps=STEPS))
    chunk = np.asarray(integrate(toy_velocity, noise, num_flow_steps=STEPS, guide=guide_of(actions, mask)))
    distance = np.abs(chunk - actions)
    bound = 0.05 * np.abs(noise) + 0.015 * np.abs(actions - MEAN)
    assert (distance <= bound)[:, :3].all()
    assert not (np.abs(free - actions) <= bound)[:, :3].any()
    closeness = 1 - np.abs(chunk - actions).mean(axis=(0, 2)) / np.abs(free - actions).mean(axis=(0, 2))
    assert (closeness[:3] > 0.9).all()
    assert (np.diff(closeness[2:7]) < -0.05).all()  # less and less from the last fixed step to the first free one
    np.testing.assert_allclose(chunk[:, 6:], free[:, 6:], rtol=0, atol=1e-6)


def test_a_larger_weight_agrees_more_closely():
    noise, actions = case()
    mask = soft_mask(SHAPE[1], delay=3, overlap=6)
    distances = [
        np.abs(integrate(toy_velocity, noise, num_flow_steps=STEPS, guide=guide_of(actions, mask, weight)) - actions)
        for weight in (0.5, 1.0, 2.0, 5.0)
    ]
    for nearer, farther in zip(distances[1:], distances, strict=False):
        assert nearer[:, :3].max() < farther[:, :3].max()


@pytest.mark.parametrize("velocity", [toy_velocity, coupled_velocity])
def test_without_delay_and_overlap_it_is_plain_sampling_to_the_bit(velocity):
    noise, actions = case()
    mask = soft_mask(SHAPE[1], delay=0, overlap=0)
    assert not mask.any()
    sample = jax.jit(lambda guide: integrate(velocity, noise, num_flow_steps=STEPS, guide=guide))
    np.testing.assert_array_equal(sample(guide_of(actions, mask)), sample(None))


def test_a_sample_without_an_old_chunk_is_sampled_plainly_beside_one_that_has_one():
    noise, actions = case()
    has_old = np.array([True, False, True])
    weights = soft_mask(SHAPE[1], delay=2, overlap=6)[:, None] * has_old[:, None, None]
    guide = RealTimeGuide(actions, jnp.broadcast_to(weights, SHAPE))
    chunk = integrate(coupled_velocity, noise, num_flow_steps=STEPS, guide=guide)
    plain = integrate(coupled_velocity, noise, num_flow_steps=STEPS)
    np.testing.assert_array_equal(chunk[1], plain[1])
    assert np.abs(chunk - plain)[has_old].max() > 0.1


def test_new_numbers_of_the_same_shapes_compile_nothing():
    noise, actions = case()
    sample = jax.jit(lambda guide: integrate(toy_velocity, noise, num_flow_steps=STEPS, guide=guide))
    for delay in (0, 1, 4):
        sample(guide_of(actions + delay, soft_mask(SHAPE[1], delay=delay, overlap=5)))
    assert sample._cache_size() == 1  # noqa: SLF001 - jit says nowhere else how often it compiled


def test_it_guides_the_network_itself(model, params, batch):
    """Fixed steps come nearer to the old chunk; a sample without one and the network's other samples do not notice."""
    b, ah, ad = batch.actions.shape

    noise = jax.random.normal(jax.random.key(7), (b, ah, ad))
    weights = jnp.broadcast_to(jnp.asarray(soft_mask(ah, delay=1, overlap=3))[:, None], (b, ah, ad)).at[1].set(0)
    sample = jax.jit(
        lambda guide: model.sample_actions(params, batch.observation, noise, num_flow_steps=5, guide=guide)
    )
    plain, chunk = sample(None), sample(RealTimeGuide(batch.actions, weights))
    distance, unguided = (np.abs(one - batch.actions)[:, 0].mean(axis=-1) for one in (chunk, plain))
    assert (distance < 0.5 * unguided)[[0, 2, 3]].all()
    np.testing.assert_allclose(chunk[1], plain[1], rtol=0, atol=2e-5)  # two programs, each with its own rounding


@pytest.mark.parametrize("time", [1.0, 0.97, 0.9, 0.5, 0.03, 0.0])
@pytest.mark.parametrize("bound", [5.0, 100.0])
def test_the_weight_is_bounded(time, bound):
    weight = guidance_weight(jnp.float32(time), bound)
    np.testing.assert_allclose(weight, weight_by_hand(time, bound), rtol=1e-5)


@pytest.mark.parametrize(("delay", "overlap"), [(0, 0), (0, 6), (2, 6), (4, 4), (8, 8)])
def test_the_mask_by_hand(delay, overlap):
    mask = soft_mask(8, delay=delay, overlap=overlap)
    assert (mask.shape, mask.dtype) == ((8,), np.float32)
    for step in range(8):
        expected = 0.0
        if step < delay:
            expected = 1.0
        elif step < overlap:
            c = (overlap - step) / (overlap - delay + 1)
            expected = c * (np.e**c - 1) / (np.e - 1)
        np.testing.assert_allclose(mask[step], expected, rtol=1e-6)


@pytest.mark.parametrize(("delay", "overlap"), [(-1, 3), (4, 3), (2, 9)])
def test_delays_that_cannot_be_are_refused(delay, overlap):
    with pytest.raises(ValueError, match=f"0 <= delay <= overlap .* must hold; got {delay}, {overlap} and 8"):
        soft_mask(8, delay=delay, overlap=overlap)
