"""A policy: raw samples in, action chunks out. All but the network itself, which a backend computes; loads no JAX."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from openpi_b1k.checkpoints.contents import Assets
from openpi_b1k.config.model import LoraConfig, ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.serving.continuing import CARRIED, with_continuation
from openpi_b1k.transforms.images import resize_with_pad
from openpi_b1k.transforms.pipeline import input_pipeline, output_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer

ModelSample = dict[str, Any]  # Any: arrays, and dicts of them by camera; what `input_pipeline` returns

OBSERVED = ("images", "image_masks", "state", "prompt_tokens", "prompt_mask", "point_cloud")
"""The fields of a model sample that the network sees: those of `openpi_b1k.observation.Observation`."""


class Backend(Protocol):
    """A network with its parameters and its source of noise."""

    def sample(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        """Returns one normalised action chunk per model sample, [n, ah, ad], from new noise at every call.

        Model samples with a `continuation` are to agree with it, as their `guidance` says.

        Raises:
            ValueError: they are not to be guided in one way.
        """
        ...


class Policy:
    """Samples action chunks for a batch of environments.

    `infer` does it all; servers call its parts, `prepare`, `predict` and `finish`, to time them and to tell which of
    several samples is at fault.
    """

    def __init__(self, config: TrainConfig, assets: Assets, tokenizer: Tokenizer, backend: Backend) -> None:
        """Computes nothing yet.

        Args:
            config: of the run that trained the network.
            assets: of the same checkpoint.
            tokenizer: of the same checkpoint.
            backend: the network.

        Raises:
            ValueError: config, statistics and tokenizer do not fit together.
        """
        self.config = config
        self.prompts = assets.prompts
        """Task name -> the prompt it was trained with."""
        self.robot = r1pro(config.data.transforms.state_layout)
        self.backend = backend
        """Acts with another one from the moment it is replaced."""
        transforms, stats = config.data.transforms, assets.norm_stats
        self._inputs = input_pipeline(config.data, config.model, self.robot, stats, tokenizer)
        self._outputs = output_pipeline(transforms, config.model, self.robot, stats)

    def infer(self, samples: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns one action chunk per raw sample, float32 [n, action horizon, 23], in the robot's units.

        A raw sample may have a `continuation`, actions known from before, with the `guidance` that says how closely
        the chunk agrees with them.

        Raises:
            KeyError: a sample lacks a camera, its depth, the prompt or the proprio.
            ValueError: a sample does not fit the robot or the model; the message says how.
        """
        inputs = [self.prepare(sample) for sample in samples]
        chunks = self.predict(inputs)
        return np.stack([self.finish(chunk, one) for chunk, one in zip(chunks, inputs, strict=True)])

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Returns an image at the model's size, most of the work of `prepare`, which then leaves it as it is."""
        return resize_with_pad(image, self.config.model.image_size)

    def prepare(self, sample: dict[str, Any]) -> ModelSample:
        """Returns a raw sample as the network sees it; may be called from several threads.

        Raises:
            KeyError: as `infer`.
            ValueError: as `infer`.
        """
        if "continuation" not in sample:
            return self._inputs(sample)
        raw = with_continuation(sample, sample["continuation"], self.config.model.action_horizon)
        return self._inputs(raw) | {name: sample[name] for name in CARRIED}

    def predict(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        """Returns one normalised chunk per model sample, [n, ah, ad], when all are computed."""
        return self.backend.sample(inputs)

    def finish(self, chunk: np.ndarray, inputs: ModelSample) -> np.ndarray:
        """Returns a chunk, float32 [action horizon, 23] in the robot's units, given the model sample it is for."""
        return self._outputs({"actions": chunk, "raw_state": inputs["raw_state"]})["actions"]


def dense(config: ModelConfig) -> ModelConfig:
    """Returns the model as it acts: adapters are merged into a checkpoint's kernels."""
    return dataclasses.replace(config, lora=LoraConfig())


def stacked(inputs: Sequence[ModelSample]) -> dict[str, Any]:
    """Returns what the network sees of the model samples, batched: {field: array, or {camera: array}}."""
    fields = {}
    for field in OBSERVED:
        values = [one[field] for one in inputs if field in one]
        if values and isinstance(values[0], dict):
            fields[field] = {name: np.stack([value[name] for value in values]) for name in values[0]}
        elif values:
            fields[field] = np.stack(values)
    return fields
