"""The policy of a checkpoint directory with noise that can begin anew."""

import dataclasses
import pathlib

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import WeightsKind
from openpi_b1k.evaluation.doctor.replay import Patient
from openpi_b1k.serving import jax_backend
from openpi_b1k.transforms.tokenize import Tokenizer


@dataclasses.dataclass(frozen=True)
class Loading:
    """Loads a checkpoint with JAX."""

    seed: int = 0
    """Of the noise."""
    weights_kind: WeightsKind = "ema"
    batch_size: int = 16
    """Frames at a time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")

    def __call__(self, checkpoint: pathlib.Path) -> Patient:
        """Returns the policy, and what is needed to build it anew with something changed.

        Raises:
            FileNotFoundError: the directory, its config or its assets are missing.
            ValueError: config and weights do not belong together.
        """
        policy = jax_backend.load(checkpoint, self.seed, self.weights_kind)
        backend = policy.backend
        if not isinstance(backend, jax_backend.JaxBackend):
            raise TypeError(f"a loaded policy must compute with JaxBackend; got {type(backend).__name__}")
        tokenizer = Tokenizer(checkpoint / contents.TOKENIZER_FILE)
        assets = contents.read_assets(checkpoint)
        return Patient(policy, assets, tokenizer, backend.restart, self.batch_size)
