import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.models.attention import attend, attend_with_prefix, rotate


def softmax_gather(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns softmax(keys @ query) @ values for one query [h], keys and values [n, h]."""
    scores = np.exp(keys @ query - (keys @ query).max())
    return scores / scores.sum() @ values


@pytest.mark.parametrize(("num_kv_heads", "groups"), [(1, 4), (2, 2), (3, 1)])
def test_attend_is_a_softmax_over_what_each_token_sees(num_kv_heads, groups):
    random = np.random.default_rng(0)
    queries = random.normal(size=(2, 5, num_kv_heads, groups, 4)).astype(np.float32)
    keys, values = random.normal(size=(2, 2, 5, num_kv_heads, 4)).astype(np.float32)
    mask = random.random((2, 5, 5)) < 0.6
    mask |= np.eye(5, dtype=bool)
    expected = np.empty_like(queries)
    for b, t, k, g in np.ndindex(queries.shape[:-1]):
        seen = mask[b, t]
        expected[b, t, k, g] = softmax_gather(queries[b, t, k, g], keys[b, seen, k], values[b, seen, k])
    ours = attend(*map(jnp.asarray, (queries, keys, values, mask)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_attend_with_prefix_is_one_softmax_over_prefix_and_own_sample():
    random = np.random.default_rng(1)
    b, f, a, k, g, h, t = 2, 3, 4, 2, 2, 4, 5
    queries = random.normal(size=(b, f, a, k, g, h)).astype(np.float32)
    keys, values = random.normal(size=(2, b, f, a, k, h)).astype(np.float32)
    prefix_keys, prefix_values = random.normal(size=(2, b, t, k, h)).astype(np.float32)
    mask = random.random((b, a, t + a)) < 0.6
    mask[:, :, 0] = True
    expected = np.empty_like(queries)
    for i, s, q, n, m in np.ndindex(queries.shape[:-1]):
        seen = mask[i, q]
        all_keys = np.concatenate([prefix_keys[i, :, n], keys[i, s, :, n]])[seen]
        all_values = np.concatenate([prefix_values[i, :, n], values[i, s, :, n]])[seen]
        expected[i, s, q, n, m] = softmax_gather(queries[i, s, q, n, m], all_keys, all_values)
    queries, keys, values, prefix_keys, prefix_values, mask = map(
        jnp.asarray, (queries, keys, values, prefix_keys, prefix_values, mask)
    )
    ours = attend_with_prefix(queries, (keys, values), (prefix_keys, prefix_values), mask)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_large_scores_do_not_overflow():
    ones = jnp.full((1, 2, 1, 1, 4), 100.0)
    keys, values = jnp.full((1, 2, 1, 4), 100.0), jnp.ones((1, 2, 1, 4))
    np.testing.assert_allclose(attend(ones, keys, values), np.ones((1, 2, 1, 1, 4)), atol=1e-6)


def test_rotated_products_depend_on_distance_only():
    random = np.random.default_rng(2)
    queries, keys = random.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(query_position: int, key_position: int) -> float:
        rotated = [
            rotate(jnp.asarray(x), jnp.array([[at]])) for x, at in ((queries, query_position), (keys, key_position))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(0, 0) == pytest.approx(float(np.sum(queries * keys)), abs=1e-5)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
