import jax.numpy as jnp
import numpy as np

from openpi_b1k.models.tokens import TokenGroup, attention_mask, concat, positions


def test_a_token_sees_its_block_and_earlier_ones_but_no_padding():
    mask = jnp.array([[True, True, False, True, True]])
    sees = attention_mask(mask, (False, False, False, True, False))
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(sees[0], expected)


def test_positions_count_valid_tokens_only():
    mask = jnp.array([[True, False, True, True], [False, True, True, False]])
    np.testing.assert_array_equal(positions(mask), [[0, 0, 1, 2], [-1, 0, 1, 1]])
    np.testing.assert_array_equal(positions(mask, jnp.array([10, 20])), [[10, 10, 11, 12], [19, 20, 21, 21]])


def test_concat_keeps_order_and_rules():
    first = TokenGroup(jnp.zeros((1, 2, 3)), jnp.array([[True, False]]), (False, False))
    second = TokenGroup(jnp.ones((1, 1, 3)), jnp.array([[True]]), (True,))
    both = concat([first, second])
    np.testing.assert_array_equal(both.tokens[0, :, 0], [0, 0, 1])
    np.testing.assert_array_equal(both.mask, [[True, False, True]])
    assert both.starts_block == (False, False, True)
