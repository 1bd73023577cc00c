"""Tokens, their mask and their attention rule travel together."""

import dataclasses

import jax
import jax.numpy as jnp

from openpi_b1k.typing import Array, Bool, Float, Int, typecheck


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """A run of tokens. `f` stands for any axes between batch and tokens, such as flow samples, that share the mask."""

    tokens: Float[Array, "b *f t d"]
    mask: Bool[Array, "b t"]
    """Whether a token is there; an absent one is attended to by no other."""
    starts_block: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    """Per token: whether a new block starts here. A token sees its own block and all earlier ones."""


def concat(groups: list[TokenGroup]) -> TokenGroup:
    """Returns the groups as one, in the order given."""
    return TokenGroup(
        tokens=jnp.concatenate([group.tokens for group in groups], axis=-2),
        mask=jnp.concatenate([group.mask for group in groups], axis=-1),
        starts_block=sum((group.starts_block for group in groups), start=()),
    )


@typecheck
def attention_mask(mask: Bool[Array, "b t"], starts_block: tuple[bool, ...]) -> Bool[Array, "b t t"]:
    """Returns whether token i (axis 1) sees token j (axis 2).

    Three tokens of one block, then two that form the next; token 2 is padding::

        starts_block 0 0 0 1 0      mask 1 1 0 1 1

            j 0 1 2 3 4
        i 0   1 1 . . .
          1   1 1 . . .
          2   1 1 . . .     (what padding sees does not matter: nothing sees padding)
          3   1 1 . 1 1
          4   1 1 . 1 1
    """
    block = jnp.cumsum(jnp.asarray(starts_block, jnp.int32))
    return (block[:, None] >= block[None, :]) & mask[:, None, :]


@typecheck
def positions(mask: Bool[Array, "b t"], start: Int[Array, " b"] | int = 0) -> Int[Array, "b t"]:
    """Returns each token's position: how many valid tokens precede it, counted from `start`."""
    start = jnp.asarray(start, jnp.int32).reshape(-1, 1)
    return start + jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1
