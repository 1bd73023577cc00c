"""Tensors under openpi's PyTorch names, read where they are used."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

Read = Callable[[str], torch.Tensor]
"""A tensor's key to the tensor."""

VLM = "paligemma_with_expert.paligemma.model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
EMBEDDING = "paligemma_with_expert.paligemma.lm_head.weight"
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors whose keys begin with `prefix`; each is read where it is used."""

    read: Read
    prefix: str = ""

    def __call__(self, name: str) -> torch.Tensor:
        """Returns the tensor with the key `prefix` + `name`."""
        return self.read(self.prefix + name)

    def at(self, name: str) -> "Weights":
        """Returns the tensors further down."""
        return Weights(self.read, self.prefix + name)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a float32 or bfloat16 array, or one of integers or booleans, as a tensor; a copy only where needed."""
    array = np.require(array, requirements=["C", "A", "W"])
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which torch does not know
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
