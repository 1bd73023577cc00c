import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from openpi_b1k.models.suffix import SUFFIXES, time_embedding
from tests.models.conftest import CONFIG


def test_time_embedding_has_periods_from_four_thousandths_to_four():
    time = np.array([0.0, 0.25, 1.0], np.float32)
    periods = np.geomspace(4e-3, 4.0, 4)
    angle = 2 * np.pi * time[:, None] / periods
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    np.testing.assert_allclose(time_embedding(jnp.asarray(time), 8), expected, atol=1e-3)


def swish(x):
    return x / (1 + np.exp(-x))


def embedded(kind):
    """Returns a suffix of random parameters, what it makes of random inputs, and the same in NumPy's hands."""
    random = np.random.default_rng(0)
    with nnx.use_eager_sharding(False):
        suffix = SUFFIXES[kind](dataclasses.replace(CONFIG, kind=kind), rngs=nnx.Rngs(0))
    for _, leaf in nnx.iter_graph(suffix):
        if isinstance(leaf, nnx.Param):
            leaf[...] = jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32)
    state, noisy, time = random.normal(size=(2, 6)), random.normal(size=(2, 3, 4, 6)), random.uniform(size=(2, 3))
    inputs = [jnp.asarray(x, jnp.float32) for x in (state, noisy, time)]
    group, condition = suffix.embed(*inputs, dtype=jnp.dtype("float32"))
    waves = np.asarray(time_embedding(inputs[2], 16), np.float64)
    params = nnx.to_pure_dict(nnx.state(suffix, nnx.Param))

    def linear(name, x):
        return x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)

    return suffix, group, condition, linear, (state, noisy, waves)


def test_pi05_has_the_actions_alone_and_the_time_is_a_condition():
    suffix, group, condition, linear, (_, noisy, waves) = embedded("pi05")
    np.testing.assert_allclose(group.tokens, linear("action_in_proj", noisy), atol=1e-5)
    assert group.starts_block == (True, False, False, False)
    expected = swish(linear("time_mlp_out", swish(linear("time_mlp_in", waves))))
    np.testing.assert_allclose(condition, expected, atol=1e-5)
    velocity = suffix.velocity(group.tokens)
    np.testing.assert_allclose(velocity, linear("action_out_proj", np.asarray(group.tokens)), atol=1e-5)


def test_pi0_has_a_token_of_the_state_then_actions_with_the_time_mixed_in():
    suffix, group, condition, linear, (state, noisy, waves) = embedded("pi0")
    for sample in range(3):
        np.testing.assert_allclose(group.tokens[:, sample, 0], linear("state_proj", state), atol=1e-5)
    for action in range(4):
        both = np.concatenate([linear("action_in_proj", noisy[:, :, action]), waves], axis=-1)
        expected = linear("action_time_mlp_out", swish(linear("action_time_mlp_in", both)))
        np.testing.assert_allclose(group.tokens[:, :, 1 + action], expected, atol=2e-5)
    assert group.starts_block == (True, True, False, False, False)
    assert group.mask.all()
    assert condition.shape == (2, 3, 0)
    velocity = suffix.velocity(group.tokens)
    np.testing.assert_allclose(velocity, linear("action_out_proj", np.asarray(group.tokens)[:, :, 1:]), atol=1e-5)
