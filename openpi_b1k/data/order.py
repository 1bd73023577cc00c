"""Which sample comes at position n of a run: pure in (seed, n), without a stored permutation.

Positions e*size ... e*size + size - 1 are epoch e, in which every sample comes once. Its order is a bijection of
range(size) made of a few keyed additions, so that the order of 200 million samples costs no memory and any position,
hence any resumed run, is found at once.
"""

import math

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
ROUND_KEYS = tuple(np.uint64(number * GOLDEN % 2**64) for number in range(1, ROUNDS + 1))


def sample_index(seed: int, n: int | np.ndarray, size: int) -> np.ndarray:
    """Returns which of `size` samples comes at each global position, int64 of n's shape.

    A sample number is written as (left, right) in mixed radix with about sqrt(size) values each; each round adds a
    keyed hash of one part to the other, modulo its radix, which can be undone whatever the hash. The few pairs beyond
    `size` walk on along their cycle until they are below it.

    Args:
        seed: of the run.
        n: positions, not negative; an int or an array.
        size: samples per epoch.

    Raises:
        ValueError: size is below 1 or a position is negative.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002): generalised Feistel and cycle walking.
    """
    positions = np.asarray(n, np.int64)
    if size < 1:
        raise ValueError(f"an order needs at least 1 sample; got size {size}")
    if positions.size and positions.min() < 0:
        raise ValueError(f"positions must not be negative; got {positions.min()}")
    flat = positions.reshape(-1)
    keys = _mix(_mix(np.array([seed % 2**64], np.uint64)) + (flat // size).astype(np.uint64) * np.uint64(GOLDEN))
    numbers = _permute((flat % size).astype(np.uint64), keys, size)
    while (beyond := numbers >= size).any():
        numbers[beyond] = _permute(numbers[beyond], keys[beyond], size)
    return numbers.astype(np.int64).reshape(positions.shape)


def _permute(numbers: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """Returns a bijection of range(radix * radix'), the smallest such range that holds range(size)."""
    left_radix = np.uint64(math.isqrt(size - 1) + 1)
    right_radix = np.uint64(-(-size // int(left_radix)))
    left, right = numbers // right_radix, numbers % right_radix
    for number, round_key in enumerate(ROUND_KEYS):
        key = _mix(keys + round_key)
        if number % 2 == 0:
            left = (left + _mix(right ^ key) % left_radix) % left_radix
        else:
            right = (right + _mix(left ^ key) % right_radix) % right_radix
    return left * right_radix + right


def _mix(values: np.ndarray) -> np.ndarray:
    """Returns a hash of each uint64. Source: Steele et al., SplitMix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
