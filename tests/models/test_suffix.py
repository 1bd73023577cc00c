import jax.numpy as jnp
import numpy as np

from openpi_b1k.models.suffix import time_embedding


def test_time_embedding_has_periods_from_four_thousandths_to_four():
    time = np.array([0.0, 0.25, 1.0], np.float32)
    periods = np.geomspace(4e-3, 4.0, 4)
    angle = 2 * np.pi * time[:, None] / periods
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    np.testing.assert_allclose(time_embedding(jnp.asarray(time), 8), expected, atol=1e-3)
