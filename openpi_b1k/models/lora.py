"""Low-rank adapters: a frozen kernel W acts as W + alpha / rank * A B, of which A and B alone are trained.

A is random and B zero at first, so a model with fresh adapters computes what it computes without them, to the bit. The
product A B is never made in training: tokens go through A, then through B. Keys and values, and gate and up, have A and
B of their own; the heads of an attention output share one A over all of them.

Source: LoRA, arXiv 2106.09685. openpi's adapters differ: B is not zero at first, alpha / rank is left out in MLPs, and
the one of the attention output sums B over heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from openpi_b1k.config.model import ADAPTED_PARTS, AdapterConfig, LoraConfig, ModelConfig
from openpi_b1k.sharding import gathered
from openpi_b1k.typing import Array, Float, Params

A, B, KERNEL = "lora_a", "lora_b", "kernel"
RANK, FUSED = "r", "c"
uniform_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # in +-1 / sqrt(fan_in), as PEFT draws A


@dataclasses.dataclass(frozen=True)
class Factors:
    """The axes of a kernel and of its two factors, a letter each: `r` is the rank, `c` the place of a fused kernel."""

    kernel: str
    a: str
    b: str

    @property
    def inputs(self) -> str:
        """The axes of A that tokens are summed over."""
        return "".join(letter for letter in self.a if letter not in self.b)


GEMMA = {
    "q": Factors("ndh", "dr", "rnh"),
    "kv": Factors("ckdh", "cdr", "crkh"),
    "out": Factors("nhd", "nhr", "rd"),
    "gate_up": Factors("cdf", "cdr", "crf"),
    "down": Factors("fd", "fr", "rd"),
}
SIGLIP = {
    "q": Factors("dnh", "dr", "rnh"),
    "k": Factors("dnh", "dr", "rnh"),
    "v": Factors("dnh", "dr", "rnh"),
    "out": Factors("nhd", "nhr", "rd"),
    "up": Factors("df", "dr", "rf"),
    "down": Factors("fd", "fr", "rd"),
}


@dataclasses.dataclass(frozen=True)
class LowRank:
    """What an adapter adds to the output of one kernel. Its two factors belong to the module that owns the kernel."""

    factors: Factors
    scale: float
    """alpha / rank"""

    def __call__(self, equation: str, x: Float[Array, "..."], a: Array, b: Array) -> Float[Array, "..."]:
        """Returns alpha / rank * B A x in the type of `x`.

        Args:
            equation: of tokens and kernel, as for einsum; the kernel's letters are those of the factors. Without `c`
                it is about one of the kernels that are fused, and so are the factors.
            x: tokens.
            a: the first factor.
            b: the second.
        """
        operands, output = equation.split("->")
        tokens, kernel = operands.split(",")
        is_one = FUSED not in kernel
        of_a, of_b = (letters.replace(FUSED, "") if is_one else letters for letters in (self.factors.a, self.factors.b))
        inputs = self.factors.inputs
        hidden = "".join(letter for letter in tokens + of_a if letter not in inputs)
        low = jnp.einsum(f"{tokens},{of_a}->{hidden}", x, gathered(a.astype(x.dtype)))
        return jnp.einsum(f"{hidden},{of_b}->{output}", low * self.scale, gathered(b.astype(x.dtype)))


def factor_shapes(factors: Factors, kernel_axes: dict[str, int], rank: int) -> tuple[dict[str, int], dict[str, int]]:
    """Returns {logical name: size} of A's and B's axes, for a kernel whose axes are given likewise."""
    named = dict(zip(factors.kernel, kernel_axes.items(), strict=True))
    named[RANK] = ("rank", rank)
    return dict(named[letter] for letter in factors.a), dict(named[letter] for letter in factors.b)


def merge(params: Params, config: ModelConfig) -> Params:
    """Returns parameters without adapters: each kernel that has one as W + alpha / rank * A B in float32.

    Works on the whole tree and on parts of it, under jit too; what has no adapter is returned as it is.
    """
    return {name: _merged(child, config.lora, name, ()) for name, child in params.items()}


def _merged(node: Params, config: LoraConfig, root: str, path: tuple[str, ...]) -> Params:
    if not isinstance(node, dict):
        return node
    if A not in node:
        return {name: _merged(child, config, root, (*path, name)) for name, child in node.items()}
    factors = (SIGLIP if root == "vision" else GEMMA)[path[-1]]
    adapter: AdapterConfig = getattr(config, ADAPTED_PARTS[root])
    equation = f"z{factors.a},z{factors.b}->z{factors.kernel}"  # layers are stacked on axis 0
    a, b = node[A].astype(jnp.float32), node[B].astype(jnp.float32)
    product = jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)  # GPUs would round the factors
    merged = node[KERNEL].astype(jnp.float32) + adapter.alpha / adapter.rank * product
    return {name: leaf for name, leaf in node.items() if name not in (A, B)} | {KERNEL: merged}
