import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from openpi_b1k.models import layers
from openpi_b1k.models.gemma import add_gated
from openpi_b1k.models.layers import AdaptiveRMSNorm, FixedRMSNorm, LayerNorm, Linear, RMSNorm, run_layers, stack_layers


@pytest.fixture(autouse=True)
def _without_mesh():
    with nnx.use_eager_sharding(False):
        yield


def test_norms_are_float32_whatever_comes_in():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 1, 3, 8)).astype(np.float32)
    rms = RMSNorm(8, rngs=nnx.Rngs(0))
    rms.scale[...] = jnp.full(8, 0.5)
    np.testing.assert_allclose(rms(jnp.asarray(x)), 1.5 * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), rtol=1e-5)
    layer = LayerNorm(8, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.full(8, 2.0)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) + 2
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)
    half = layer(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=3e-2)


def test_adaptive_norm_scales_shifts_and_gates_by_its_condition():
    random = np.random.default_rng(1)
    x, condition = random.normal(size=(2, 3, 4, 6)), random.normal(size=(2, 3, 6))
    norm = AdaptiveRMSNorm(6, rngs=nnx.Rngs(0))
    plain, gate = norm(jnp.asarray(x, jnp.float32), norm.modulation_by(jnp.asarray(condition, jnp.float32)))
    np.testing.assert_array_equal(gate, np.zeros((2, 3, 1, 6)))
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(plain, normed, atol=1e-5)
    kernel, bias = random.normal(size=(6, 18)), random.normal(size=18)
    norm.modulation.kernel[...], norm.modulation.bias[...] = jnp.float32(kernel), jnp.float32(bias)
    modulated, gate = norm(jnp.asarray(x, jnp.float32), norm.modulation_by(jnp.asarray(condition, jnp.float32)))
    scale, shift, expected_gate = np.split((condition @ kernel + bias)[:, :, None], 3, axis=-1)
    np.testing.assert_allclose(modulated, normed * (1 + scale) + shift, atol=1e-4)
    np.testing.assert_allclose(gate, expected_gate, atol=1e-4)


def test_a_fixed_norm_takes_an_adaptive_ones_place_and_leaves_its_gate_open():
    x = np.random.default_rng(3).normal(size=(2, 3, 4, 6)).astype(np.float32)
    norm = FixedRMSNorm(6, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.arange(6.0)
    normed, gate = norm(jnp.asarray(x), norm.modulation_by(jnp.zeros((2, 3, 0))))
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + np.arange(6))
    np.testing.assert_allclose(normed, expected, rtol=1e-5)
    for dtype in (jnp.float32, jnp.bfloat16):  # adding through the gate is adding
        one, other = jnp.asarray(x, dtype), jnp.asarray(3 * x[::-1], dtype)
        np.testing.assert_array_equal(add_gated(one, other, gate), one + other)


def test_linear_maps_the_last_axes():
    x = np.random.default_rng(2).normal(size=(5, 2, 3)).astype(np.float32)
    linear = Linear({"heads": 2, "head_dim": 3}, {"embed": 4}, rngs=nnx.Rngs(0))
    expected = x.reshape(5, 6) @ np.asarray(linear.kernel[...]).reshape(6, 4)
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, atol=1e-5)


def stack(depth: int) -> Linear:
    return stack_layers(lambda rngs: Linear({"embed": 4}, {"hidden": 4}, rngs=rngs), depth, nnx.Rngs(0))


def run(stacked: Linear, x: jax.Array, depth: int, **options) -> tuple[jax.Array, jax.Array]:
    def body(layer, x, extra):
        return extra * jnp.sum(x), lambda: jnp.tanh(layer(x)) + extra

    return run_layers(stacked, body, x, per_layer=jnp.arange(depth, dtype=jnp.float32), **options)


def test_layers_are_drawn_one_by_one():
    kernel = np.asarray(stack(3).kernel[...])
    assert kernel.shape == (3, 4, 4)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("unrolled", [True, False])
def test_every_way_to_run_layers_agrees_with_a_loop(monkeypatch, unrolled, remat):
    monkeypatch.setattr(layers, "UNROLLED_DEPTHS", dict.fromkeys(layers.UNROLLED_DEPTHS, 4 if unrolled else 0))
    stacked, x = stack(4), jnp.arange(4.0)[None] / 4
    kernel, bias = np.asarray(stacked.kernel[...]), np.asarray(stacked.bias[...])
    expected, outputs = np.asarray(x), []
    for i in range(4):
        outputs.append(i * expected.sum())
        expected = np.tanh(expected @ kernel[i] + bias[i]) + i
    ours, our_outputs = run(stacked, x, 4, remat=remat)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(our_outputs, outputs, rtol=1e-5)
    skipped = run(stacked, x, 4, remat=remat, skip_last=True)[1]
    np.testing.assert_allclose(skipped, outputs, rtol=1e-5)
    gradient = jax.grad(lambda x: run(stacked, x, 4, remat=remat, skip_last=True)[1].sum())(x)
    full = jax.grad(lambda x: run(stacked, x, 4, remat="none")[1].sum())(x)
    np.testing.assert_allclose(gradient, full, rtol=1e-5)


@pytest.mark.parametrize("unrolled", [True, False])
def test_the_rest_of_the_last_layer_gets_no_gradient(monkeypatch, unrolled):
    monkeypatch.setattr(layers, "UNROLLED_DEPTHS", dict.fromkeys(layers.UNROLLED_DEPTHS, 4 if unrolled else 0))
    stacked = stack(4)
    graph, params = nnx.split(stacked)
    gradient = jax.grad(lambda p: run(nnx.merge(graph, p), jnp.ones((1, 4)), 4, remat="none", skip_last=True)[1].sum())(
        params
    )
    per_layer = np.abs(np.asarray(gradient.kernel[...])).max(axis=(1, 2))
    assert (per_layer[:3] > 0).all()
    assert per_layer[3] == 0
