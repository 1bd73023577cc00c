"""A policy: raw samples in, action chunks out. Everything it needs comes from a checkpoint directory."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import WeightsKind, load_params
from openpi_b1k.config.model import LoraConfig, ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Observation
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sharding import make_mesh, replicated
from openpi_b1k.transforms.pipeline import input_pipeline, output_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer
from openpi_b1k.typing import Params

logger = logging.getLogger(__name__)


class Policy:
    """Samples action chunks for a batch of environments."""

    def __init__(
        self,
        config: TrainConfig,
        params: Params,
        assets: contents.Assets,
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
    ) -> None:
        """Compiles nothing yet; the first call of each batch size does.

        Args:
            config: of the run that trained the parameters.
            params: the model's, under our names.
            assets: of the same checkpoint.
            tokenizer: of the same checkpoint.
            seed: of the noise that sampling starts from.
        """
        self.config = config
        self.prompts = assets.prompts
        """Task name -> the prompt it was trained with."""
        self.robot = r1pro(config.data.transforms.state_layout)
        self._params = params
        transforms, stats = config.data.transforms, assets.norm_stats
        self._inputs = input_pipeline(config.data, config.model, self.robot, stats, tokenizer)
        self._outputs = output_pipeline(transforms, config.model, self.robot, stats)
        self._sample = compiled_sampler(dense(config.model))
        self._key = jax.random.key(seed)
        self._num_calls = 0

    @classmethod
    def load(cls, checkpoint: pathlib.Path | str, seed: int = 0, weights_kind: WeightsKind = "ema") -> "Policy":
        """Returns the policy of a checkpoint directory (`.../<completed steps>`).

        Args:
            checkpoint: the directory.
            seed: of the noise that sampling starts from.
            weights_kind: as for `load_params`.

        Raises:
            FileNotFoundError: the directory, its config or its assets are missing.
            ValueError: config and weights do not belong together.
        """
        checkpoint = pathlib.Path(checkpoint)
        config, assets = contents.read_config(checkpoint), contents.read_assets(checkpoint)
        abstract = Model(dense(config.model)).abstract_params()
        on_first_device = replicated(make_mesh(1, jax.devices()[:1]))
        shardings = jax.tree.map(lambda _: on_first_device, abstract)
        params = load_params(checkpoint, abstract, shardings, kind=weights_kind, log_level=logging.DEBUG)
        tokenizer = Tokenizer(checkpoint / contents.TOKENIZER_FILE)
        info = contents.read_info(checkpoint)
        logger.info("policy of %s: %d steps on %s", checkpoint, info.completed_steps, "; ".join(map(str, info.sources)))
        return cls(config, params, assets, tokenizer, seed=seed)

    def replace_params(self, params: Params) -> None:
        """Acts with other parameters from now on, of the same shapes."""
        self._params = params

    def infer(self, samples: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns one action chunk per raw sample, float32 [n, action horizon, 23], in the robot's units.

        Raises:
            KeyError: a sample lacks a camera, its depth, the prompt or the proprio.
            ValueError: a sample does not fit the robot or the model; the message says how.
        """
        inputs = [self._inputs(sample) for sample in samples]
        self._num_calls += 1
        key = jax.random.fold_in(self._key, self._num_calls)
        chunks = np.asarray(self._sample(self._params, to_observation(inputs), key))
        return np.stack(
            [
                self._outputs({"actions": chunk, "raw_state": one["raw_state"]})["actions"]
                for chunk, one in zip(chunks, inputs, strict=True)
            ]
        )


def dense(config: ModelConfig) -> ModelConfig:
    """Returns the model as it acts: adapters are merged into a checkpoint's kernels."""
    return dataclasses.replace(config, lora=LoraConfig())


def to_observation(inputs: Sequence[dict[str, Any]]) -> Observation:
    """Returns model samples as one batched Observation."""

    def stack(*values: np.ndarray) -> np.ndarray:
        return np.stack(values)

    fields = [field.name for field in dataclasses.fields(Observation)]
    names = [name for name in fields if name in inputs[0]]
    return Observation(**jax.tree.map(stack, *[{name: one[name] for name in names} for one in inputs]))


@functools.cache
def compiled_sampler(model_config: ModelConfig) -> Callable:
    """Returns jitted (params, observation, key) -> normalised chunks [b, ah, ad]."""
    model = Model(model_config)

    @jax.jit
    def sample(params: Params, observation: Observation, key: jax.Array) -> jax.Array:
        shape = (observation.state.shape[0], model_config.action_horizon, model_config.action_dim)
        noise = jax.random.normal(key, shape)
        return model.sample_actions(params, observation, noise, num_flow_steps=model_config.num_flow_steps)

    return sample
