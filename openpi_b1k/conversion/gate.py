"""The gate of a conversion: two models compute the same inputs, stage by stage, and must agree at each stage.

Both are computed layer by layer from what is on disk, in turn, so that neither is in memory as a whole.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.conversion.probe import Probe, probe
from openpi_b1k.models import stages as jax_stages
from openpi_b1k.pytorch import stages as torch_stages
from openpi_b1k.pytorch.weights import DTYPES, as_tensor

LIMIT = 1e-4
"""The largest difference allowed at a stage, relative to the RMS of the reference.

Both models compute in float32, of weights that are rounded to bfloat16 where the file has them so. With activations in
bfloat16 one last bit of a large entry is above 1e-2 of the RMS, and right conversions reach 6e-2 after 18 layers, so
that no limit would tell them from wrong ones.
"""

Stages = Iterable[tuple[str, np.ndarray]]
ReadArray = Callable[[str], np.ndarray]


class GateError(ValueError):
    """Two models that should be one compute different numbers; the message holds the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How far two models are apart at one stage."""

    stage: str
    largest_difference: float
    rms: float
    """Root mean square of the reference."""

    @property
    def relative(self) -> float:
        """The largest difference over the RMS; infinite where that is no number."""
        if self.largest_difference == 0:
            return 0.0
        ratio = self.largest_difference / self.rms if self.rms > 0 else math.inf
        return ratio if math.isfinite(ratio) else math.inf


def compare(reference: Stages, candidate: Stages) -> Iterator[Row]:
    """Yields a row for each stage, computing the stages of both models in turn.

    Raises:
        GateError: the stages have different names, shapes or numbers.
    """
    for (name, expected), (other, found) in zip(reference, candidate, strict=True):
        if name != other or expected.shape != found.shape:
            raise GateError(f"stage {name!r} {expected.shape} was compared with {other!r} {found.shape}")
        difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
        yield Row(name, float(np.max(difference)), float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))


def in_jax(read: ReadArray, config: ModelConfig, inputs: Probe) -> Stages:
    """Returns the stages of the JAX model whose parameters `read` returns by our names."""
    return jax_stages.stages(read, config, inputs.observation, inputs.noise, inputs.time)


def in_torch(read: ReadArray, config: ModelConfig, inputs: Probe) -> Stages:
    """Returns the stages of the PyTorch model whose tensors `read` returns by openpi's PyTorch names."""
    return torch_stages.stages(
        lambda key: as_tensor(read(key)),
        config,
        inputs.observation,
        inputs.noise,
        inputs.time,
        dtype=DTYPES[config.dtype],
    )


def check(config: TrainConfig, read: ReadArray, read_tensor: ReadArray) -> tuple[Row, ...]:
    """Returns how far the JAX model and the PyTorch model are apart at each stage, on fixed inputs.

    Args:
        config: of the model.
        read: our name of a parameter to the parameter.
        read_tensor: openpi's PyTorch key of a tensor to the tensor.

    Raises:
        GateError: a stage differs by more than LIMIT; the message holds the table.
    """
    model, inputs = dataclasses.replace(config.model, dtype="float32"), probe(config)
    rows = tuple(compare(in_jax(read, model, inputs), in_torch(read_tensor, model, inputs)))
    beyond = [row for row in rows if not row.relative <= LIMIT]
    if beyond:
        raise GateError(
            f"the JAX model and the PyTorch model do not compute the same: {len(beyond)} of {len(rows)} stages differ "
            f"by more than {LIMIT:g}, the first is {beyond[0].stage!r}. Nothing was kept.\n{table(rows)}"
        )
    return rows


def table(rows: Iterable[Row]) -> str:
    """Returns the rows as text, stages beyond the limit marked."""
    lines = [f"{'stage':<26}{'max|difference|':>16}{'rms':>12}{'ratio':>12}   limit {LIMIT:g}"]
    lines += [
        f"{row.stage:<26}{row.largest_difference:>16.3e}{row.rms:>12.3e}{row.relative:>12.3e}"
        f"{'' if row.relative <= LIMIT else '   BEYOND'}"
        for row in rows
    ]
    return "\n".join(lines)
