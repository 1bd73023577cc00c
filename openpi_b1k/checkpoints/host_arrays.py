"""Arrays of weights in a process's memory: which types there may be, and how they get onto devices."""

from collections.abc import Mapping

import jax
import numpy as np

DTYPES = ("float32", "bfloat16")
SHOWN = 4


def require_types(dtypes: Mapping[str, np.dtype], where: str) -> None:
    """Checks that weights are of a type that keeps them.

    Args:
        dtypes: name -> type.
        where: what holds them, for the message.

    Raises:
        ValueError: one is of another type, such as float16, whose range is too small, or of integers.
    """
    wrong = [f"{name} is {dtype}" for name, dtype in dtypes.items() if str(dtype) not in DTYPES]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"weights are read from {' or '.join(DTYPES)}; at {where} {'; '.join(wrong[:SHOWN])}{more}: convert them "
            "from the checkpoint that they were made of"
        )


def place(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array on the devices, as the sharding and the type of `leaf` have it; waits until it is there.

    Raises:
        ValueError: `leaf` has no sharding.
    """
    if leaf.sharding is None:
        raise ValueError(f"an array of shape {leaf.shape} can only be placed with a sharding")
    placed = jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: array[index].astype(leaf.dtype, copy=False)
    )
    return jax.block_until_ready(placed)
