"""Array types and the check that runs them.

Axis letters in shape strings: `b` batch, `ah` action horizon, `ad` action dim, `s` state, `t` tokens, `d` width,
`n` query heads, `k` key/value heads, `h` head dim, `l` layers, `f` flow samples, `g` groups of `p` points.
"""

from typing import Any, TypeAlias

from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8, jaxtyped

Params: TypeAlias = dict[str, Any]  # Any: a nested dict of arrays, which the type system cannot say
PyTree: TypeAlias = Any

typecheck = jaxtyped(typechecker=beartype)
"""Runs a function's shape annotations. For functions only: on a pytree class it breaks `tree.map` and `eval_shape`."""

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray", "Params", "PyTree", "UInt8", "typecheck"]
