import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from openpi_b1k.config.model import SIGLIP_TINY
from openpi_b1k.models.siglip import Siglip, patches


def test_patches_times_kernel_is_a_strided_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 3))
    kernel = jax.random.normal(jax.random.key(1), (14, 14, 3, 8))
    expected = jax.lax.conv_general_dilated(
        images, kernel, (14, 14), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    ours = jnp.tensordot(patches(images, 14), kernel, 3, precision="highest")
    np.testing.assert_allclose(ours, expected.reshape(2, 4, 8), atol=1e-3)


def test_images_do_not_see_each_other():
    with nnx.use_eager_sharding(False):
        siglip = Siglip(SIGLIP_TINY, image_size=28, output_width=16, rngs=nnx.Rngs(0))
    images = jax.random.randint(jax.random.key(0), (3, 28, 28, 3), 0, 256).astype(jnp.uint8)
    run = jax.jit(lambda images: siglip(images, dtype=jnp.dtype("float32"), remat="none"))
    together = run(images)
    assert together.shape == (3, 4, 16)
    alone = run(images.at[1:].set(0))
    np.testing.assert_allclose(alone[0], together[0], atol=1e-6)
    assert np.abs(alone[1] - together[1]).max() > 1e-3
