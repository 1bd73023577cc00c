"""The building blocks against formulas written out in NumPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows needs torch

from openpi_b1k.pytorch import layers
from openpi_b1k.pytorch.suffix import time_embedding
from openpi_b1k.pytorch.vision import patches
from openpi_b1k.pytorch.weights import Weights

RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_of_grouped_heads(heads, kv_heads):
    queries, keys, values = random(2, 3, heads, 8), random(2, 5, kv_heads, 8), random(2, 5, kv_heads, 8)
    mask = RANDOM.random((2, 3, 5)) < 0.6
    mask[0, 0] = False  # with nothing to see, the mean of all values: finite, and nobody reads it
    bias = layers.score_bias(torch.tensor(mask), torch.float32)
    found = layers.attend(torch.tensor(queries), torch.tensor(keys), torch.tensor(values), bias).numpy()
    for b, t, n in np.ndindex(2, 3, heads):
        head = n // (heads // kv_heads)
        weights = np.exp(queries[b, t, n] @ keys[b, :, head].T) * mask[b, t]
        weights = weights / weights.sum() if mask[b, t].any() else np.full(5, 0.2)
        np.testing.assert_allclose(found[b, t, n * 8 : n * 8 + 8], weights @ values[b, :, head], atol=1e-5)


def test_rotation_turns_pairs_by_the_position():
    x, where = random(1, 3, 2, 8), np.array([[0, 5, 967]])
    found = layers.rotate(torch.tensor(x), layers.rotation(torch.tensor(where), 8)).numpy()
    for t, n, i in np.ndindex(3, 2, 4):
        turned = (x[0, t, n, i] + 1j * x[0, t, n, i + 4]) * np.exp(1j * where[0, t] / 10_000 ** (i / 4))
        np.testing.assert_allclose(found[0, t, n, [i, i + 4]], [turned.real, turned.imag], atol=1e-4)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_norms():
    x, weight, bias = random(2, 6), random(6), random(6)
    weights = Weights({"a.weight": torch.tensor(weight), "a.bias": torch.tensor(bias)}.__getitem__).at("a.")
    rms = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + weight)
    np.testing.assert_allclose(layers.rms_norm(weights, torch.tensor(x)).numpy(), rms, atol=1e-6)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6) * weight + bias
    np.testing.assert_allclose(layers.layer_norm(weights, torch.tensor(x)).numpy(), expected, atol=1e-6)
    assert layers.rms_norm(weights, torch.tensor(x).bfloat16()).dtype == torch.bfloat16


def test_blocks_and_positions():
    mask = layers.block_mask((True, True, False, True), torch.device("cpu"))
    np.testing.assert_array_equal(mask.numpy(), [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    there = torch.tensor([[True, False, True, True]])
    np.testing.assert_array_equal(layers.positions(there).numpy(), [[0, 0, 1, 2]])
    np.testing.assert_array_equal(layers.positions(there, torch.tensor([[7]])).numpy(), [[7, 7, 8, 9]])


def test_the_time_embedding():
    time = np.array([0.001, 0.3, 1.0], np.float32)
    period = 4e-3 * 1000.0 ** (np.arange(8) / 7)
    angle = time[:, None].astype(np.float64) / period * 2 * np.pi
    found = time_embedding(torch.tensor(time), 16).numpy()
    np.testing.assert_allclose(found, np.concatenate([np.sin(angle), np.cos(angle)], axis=-1), atol=5e-4)


def test_patches_are_cut_row_by_row_with_colours_outermost():
    images = random(2, 4, 4, 3)
    found = patches(torch.tensor(images), 2).numpy()
    for b, row, column in np.ndindex(2, 2, 2):
        square = images[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(found[b, 2 * row + column], square.transpose(2, 0, 1).ravel())
