"""Which sample comes at position n of a run: pure in (seed, n), without a stored permutation.

Positions e*size ... e*size + size - 1 are epoch e, in which every sample comes once. Its order is a bijection of
range(size) made of a few keyed additions, so that the order of 200 million samples costs no memory and any position,
hence any resumed run, is found at once.
"""

import math

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
MIXER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""(shift, factor) of SplitMix64's finaliser, which ends with a shift of 31."""
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


def derive_seed(*numbers: int) -> int:
    """Returns a seed in [0, 2**64) for each tuple of integers, such as (seed of the run, source, epoch)."""
    seed = 0
    for number in numbers:
        seed = (seed ^ (number + GOLDEN)) % 2**64
        for shift, factor in MIXER:
            seed = (seed ^ (seed >> shift)) * factor % 2**64
        seed ^= seed >> 31
    return seed


def shuffled(seed: int, size: int) -> np.ndarray:
    """Returns the numbers below `size` in an order that the seed decides, int64 [size]; none for size 0."""
    return sample_index(seed, np.arange(size), size) if size else np.zeros(0, np.int64)


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
    for shift, factor in MIXER:
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
