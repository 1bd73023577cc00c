"""The network in JAX, and the policy of a checkpoint directory."""

import functools
import logging
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import WeightsKind, load_params
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models.flow_matching import Guide
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Observation
from openpi_b1k.serving.guides import guide_of
from openpi_b1k.serving.policy import ModelSample, Policy, dense, stacked
from openpi_b1k.sharding import make_mesh, replicated
from openpi_b1k.transforms.tokenize import Tokenizer
from openpi_b1k.typing import Params

logger = logging.getLogger(__name__)


class JaxBackend:
    """Samples with the model in JAX; compiles for each number of samples at its first call, with a guide and without.

    A call in which no sample continues a chunk runs the program without one.
    """

    def __init__(self, model_config: ModelConfig, params: Params, seed: int = 0) -> None:
        """Compiles nothing yet.

        Args:
            model_config: of the model.
            params: the model's, under our names.
            seed: of the noise that sampling starts from.
        """
        self._params = params
        self._sample = compiled_sampler(model_config)
        self._key = jax.random.key(seed)
        self._num_calls = 0

    def restart(self) -> None:
        """Has the noise begin anew: the calls that follow get that of the first ones."""
        self._num_calls = 0

    def sample(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        """Returns one normalised action chunk per model sample, [n, ah, ad], from new noise at every call.

        Raises:
            ValueError: samples are to be guided in different ways.
        """
        self._num_calls += 1
        key = jax.random.fold_in(self._key, self._num_calls)
        return np.asarray(self._sample(self._params, Observation(**stacked(inputs)), key, guide_of(inputs)))


def load(checkpoint: pathlib.Path | str, seed: int = 0, weights_kind: WeightsKind = "ema") -> Policy:
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
    model_config = dense(config.model)
    abstract = Model(model_config).abstract_params()
    on_first_device = replicated(make_mesh(1, jax.devices()[:1]))
    shardings = jax.tree.map(lambda _: on_first_device, abstract)
    params = load_params(checkpoint, abstract, shardings, kind=weights_kind, log_level=logging.DEBUG)
    tokenizer = Tokenizer(checkpoint / contents.TOKENIZER_FILE)
    info = contents.read_info(checkpoint)
    logger.info("policy of %s: %d steps on %s", checkpoint, info.completed_steps, "; ".join(map(str, info.sources)))
    return Policy(config, assets, tokenizer, JaxBackend(model_config, params, seed))


@functools.cache
def compiled_sampler(model_config: ModelConfig) -> Callable:
    """Returns jitted (params, observation, key, guide or nothing) -> normalised chunks [b, ah, ad]."""
    model = Model(model_config)

    @jax.jit
    def sample(params: Params, observation: Observation, key: jax.Array, guide: Guide | None = None) -> jax.Array:
        shape = (observation.state.shape[0], model_config.action_horizon, model_config.action_dim)
        noise = jax.random.normal(key, shape)
        steps = model_config.num_flow_steps
        return model.sample_actions(params, observation, noise, num_flow_steps=steps, guide=guide)

    return sample
