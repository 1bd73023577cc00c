"""The policy of a converted directory, computed by PyTorch.

Such a directory has `model.safetensors` beside the `config.json`, `checkpoint.json` and `assets/` of a checkpoint.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openpi_b1k.checkpoints import contents
from openpi_b1k.pytorch import model_file
from openpi_b1k.pytorch.model import Inputs, Network
from openpi_b1k.serving.policy import ModelSample, Policy, dense, stacked
from openpi_b1k.transforms.tokenize import Tokenizer

logger = logging.getLogger(__name__)


class TorchBackend:
    """Samples with the network in PyTorch, on the device its tensors are on."""

    def __init__(self, network: Network, device: torch.device | str = "cpu", seed: int = 0) -> None:
        """Computes nothing yet.

        Args:
            network: of the model.
            device: where its tensors are.
            seed: of the noise that sampling starts from: NumPy's, so that every device draws the same.
        """
        self._network, self._device = network, device
        self._random = np.random.default_rng(seed)

    def sample(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        """Returns one normalised action chunk per model sample, [n, ah, ad], from new noise at every call."""
        config = self._network.config
        noise = self._random.standard_normal((len(inputs), config.action_horizon, config.action_dim), np.float32)
        with torch.inference_mode():
            tensors = Inputs.of(stacked(inputs), self._device)
            return self._network.sample_actions(tensors, torch.from_numpy(noise).to(self._device)).cpu().numpy()


class TorchPolicy(Policy):
    """A policy whose chunks cannot continue others: this sampler takes no guide."""

    def prepare(self, sample: dict[str, Any]) -> ModelSample:
        """Returns a raw sample as the network sees it.

        Raises:
            KeyError: as for any policy.
            ValueError: as for any policy, or the sample has a `continuation`.
        """
        if "continuation" in sample:
            raise ValueError(
                "PyTorch cannot lead a chunk towards known actions: leave out real_time and kept_actions, or serve the "
                "checkpoint this directory was converted from"
            )
        return super().prepare(sample)


def load(
    directory: pathlib.Path | str,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Policy:
    """Returns the policy of a directory that `scripts/convert_to_pytorch.py` wrote.

    Args:
        directory: with `model.safetensors`, `config.json`, `checkpoint.json` and `assets/`.
        device: where to compute; default: the GPU, if there is one.
        seed: of the noise that sampling starts from.
        dtype: of the activations; default: the config's.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: config and weights do not belong together.
    """
    directory = pathlib.Path(directory)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config, assets = contents.read_config(directory), contents.read_assets(directory)
    network = model_file.load(directory, dense(config.model), device=device, dtype=dtype)
    info = contents.read_info(directory)
    logger.info("policy of %s: %d steps, computed on %s", directory, info.completed_steps, device)
    tokenizer = Tokenizer(directory / contents.TOKENIZER_FILE)
    return TorchPolicy(config, assets, tokenizer, TorchBackend(network, device, seed))
