import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.models.flow_matching import integrate
from openpi_b1k.models.inpainting import Inpainting

B, AH, AD = 3, 6, 5  # the robot's actions are the first A entries
K, A = 2, 4
STEPS = 20
KNOWN = np.array([True, False, True])


def velocity(noisy_actions, time):
    return jnp.sin(noisy_actions + 2 * time) - 0.4 * jnp.roll(noisy_actions, 1, axis=1)


def case():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(B, AH, AD)).astype(np.float32)
    actions = generator.normal(size=(B, K, A)).astype(np.float32)
    gain = (generator.normal(size=((AH - K) * A, K * A)) / 10).astype(np.float32)
    return noise, actions, gain


def sampled(noise, actions, gain, **settings):
    guide = Inpainting(
        jnp.asarray(actions), jnp.asarray(KNOWN), None if gain is None else jnp.asarray(gain), **settings
    )
    return np.asarray(integrate(velocity, jnp.asarray(noise), num_flow_steps=STEPS, guide=guide))


def by_hand(noise, actions, gain, min_time=0.3):
    """Returns the same chunk, one sample and one entry at a time, and how often the later actions were let be."""
    chunks, num_skipped = noise.copy(), 0
    for b in range(B):
        x = noise[b].copy()
        for step in range(STEPS):
            time = np.float32(1 - step / STEPS)
            x = x - np.asarray(velocity(jnp.asarray(x[None]), time))[0] / np.float32(STEPS)
            after = 1 - (step + 1) / STEPS
            if not KNOWN[b] or after <= min_time:
                continue
            moved = np.zeros(K * A)
            for i in range(K):
                for j in range(A):
                    target = (1 - after) * actions[b, i, j] + after * noise[b, i, j]
                    moved[i * A + j] = target - x[i, j]
                    x[i, j] = target
            change = np.zeros((AH - K) * A) if gain is None else gain @ moved
            if np.abs(change).max() > 1:
                num_skipped += 1
            else:
                x[K:, :A] += change.reshape(AH - K, A)
        chunks[b] = x
    return chunks, num_skipped


@pytest.mark.parametrize("has_gain", [True, False])
@pytest.mark.parametrize("min_time", [0.32, 0.02, 0.97])
def test_inpainting_is_the_one_by_hand(has_gain, min_time):
    noise, actions, gain = case()
    gain = gain if has_gain else None
    expected, num_skipped = by_hand(noise, actions, gain, min_time)
    assert num_skipped == 0
    np.testing.assert_allclose(sampled(noise, actions, gain, min_time=min_time), expected, rtol=0, atol=2e-5)


def test_corrections_above_one_are_left_out_of_the_later_actions_of_that_sample_alone():
    noise, actions, gain = case()
    actions[0] *= 100
    expected, num_skipped = by_hand(noise, actions, gain, 0.32)
    assert num_skipped == 13  # every step down to time 0.35
    np.testing.assert_allclose(sampled(noise, actions, gain, min_time=0.32), expected, rtol=1e-5, atol=1e-4)


def test_a_sample_without_kept_actions_is_sampled_plainly():
    noise, actions, gain = case()
    plain = np.asarray(integrate(velocity, jnp.asarray(noise), num_flow_steps=STEPS))
    chunk = sampled(noise, actions, gain)
    np.testing.assert_array_equal(chunk[~KNOWN], plain[~KNOWN])
    assert np.abs(chunk - plain)[KNOWN].max() > 0.1


def test_held_to_the_end_the_kept_actions_are_met_exactly_and_softly_closely():
    noise, actions, gain = case()
    exact = sampled(noise, actions, gain, min_time=-1.0)
    np.testing.assert_allclose(exact[KNOWN, :K, :A], actions[KNOWN], atol=1e-6)
    plain = np.asarray(integrate(velocity, jnp.asarray(noise), num_flow_steps=STEPS))
    soft = sampled(noise, actions, gain)
    distance, unheld = (np.abs(one[KNOWN, :K, :A] - actions[KNOWN]).mean() for one in (soft, plain))
    assert 0 < distance < 0.5 * unheld


def test_padding_is_left_alone():
    noise, actions, gain = case()

    def apart(noisy_actions, time):  # each entry by itself
        return jnp.sin(noisy_actions + 2 * time)

    guide = Inpainting(jnp.asarray(actions), jnp.asarray(KNOWN), jnp.asarray(gain))
    chunk = integrate(apart, jnp.asarray(noise), num_flow_steps=STEPS, guide=guide)
    plain = integrate(apart, jnp.asarray(noise), num_flow_steps=STEPS)
    np.testing.assert_array_equal(chunk[..., A:], plain[..., A:])
    assert np.abs(chunk - plain)[KNOWN, :, :A].min() > 0


def test_new_numbers_of_the_same_shapes_compile_nothing():
    noise, actions, gain = case()
    sample = jax.jit(lambda guide: integrate(velocity, jnp.asarray(noise), num_flow_steps=STEPS, guide=guide))
    for factor in (1, 2):
        sample(Inpainting(jnp.asarray(actions * factor), jnp.asarray(KNOWN), jnp.asarray(gain)))
    assert sample._cache_size() == 1  # noqa: SLF001 - jit says nowhere else how often it compiled
