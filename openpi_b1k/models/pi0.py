"""pi0.5 and pi0: images and prompt to keys and values, noise and time to a velocity, and so a loss or an action chunk.

The prefix never sees the suffix, so its keys and values are computed once for all flow samples and Euler steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from openpi_b1k.config.model import ModelConfig
from openpi_b1k.models import flow_matching
from openpi_b1k.models.gemma import ActionExpert, KeysValues, Modulations, Vlm
from openpi_b1k.models.layers import Remat
from openpi_b1k.models.point_cloud import PointNet
from openpi_b1k.models.siglip import Siglip
from openpi_b1k.models.suffix import SUFFIXES
from openpi_b1k.models.tokens import TokenGroup, concat
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.sharding import on_mesh, split_batch
from openpi_b1k.typing import Array, Bool, Float, Params, PRNGKeyArray, UInt8, typecheck

LORA_STREAM = 2**31  # of random numbers: adapters leave those of the other parameters as they are, which count from 0


class Network(nnx.Module):
    """The network. Its children name the parameters: vision, vlm, action_expert, suffix, with points point_cloud."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config, lora = config, config.lora
        # Training knows by now what auto stands for; without a backward pass nothing is recomputed anyway.
        self.remat: Remat = "none" if config.remat == "auto" else config.remat
        self.vision = Siglip(config.vision, config.image_size, config.vlm.width, lora.vision, rngs=rngs)
        self.vlm = Vlm(config.vlm, config.vocab_size, lora.language, rngs=rngs)
        suffix = SUFFIXES[config.kind]
        self.action_expert = ActionExpert(config.action_expert, lora.action_expert, suffix.expert_norm, rngs=rngs)
        self.suffix = suffix(config, rngs=rngs)
        if config.point_clouds:  # drawn last: the other parameters are those of the same seed without it
            self.point_cloud = PointNet(config.vlm.width, rngs=rngs)

    def embed_prefix(self, observation: Observation) -> TokenGroup:
        """Returns the tokens of all images, by name, of the point cloud, if any, and of the prompt, as one block.

        Raises:
            ValueError: the observation has a point cloud and the model cannot see it, or the other way round.
        """
        dtype = jnp.dtype(self.config.dtype)
        return self.prefix_of(self.vision(all_images(observation), dtype=dtype, remat=self.remat), observation)

    def prefix_of(self, image_tokens: Float[Array, "images t d"], observation: Observation) -> TokenGroup:
        """Returns the prefix, given the tokens of `all_images`.

        Raises:
            ValueError: as `embed_prefix`.
        """
        _, num_tokens, width = image_tokens.shape
        masks = jnp.stack([observation.image_masks[name] for name in sorted(observation.images)], axis=1)
        b, num_cameras = masks.shape
        tokens = image_tokens.reshape(b, num_cameras * num_tokens, width)
        seen = TokenGroup(tokens, jnp.repeat(masks, num_tokens, axis=1), (False,) * tokens.shape[1])
        dtype = jnp.dtype(self.config.dtype)
        prompt = self.vlm.embedder(observation.prompt_tokens).astype(dtype)
        groups = [seen, TokenGroup(prompt, observation.prompt_mask, (False,) * prompt.shape[1])]
        groups[1:1] = self._embed_points(observation, dtype)
        return concat(groups)

    def _embed_points(self, observation: Observation, dtype: jnp.dtype) -> list[TokenGroup]:
        """Returns the tokens of the point cloud; none for a model without point clouds."""
        points = observation.point_cloud
        if (points is not None) != self.config.point_clouds:
            has = "has none" if points is None else "has one"
            raise ValueError(
                f"point cloud: the observation {has}, but the model has point_clouds {self.config.point_clouds}: "
                "data.modalities and model.point_clouds must agree"
            )
        if points is None:
            return []
        tokens = self.point_cloud(points, dtype=dtype, remat=self.remat)
        return [TokenGroup(tokens, jnp.ones(tokens.shape[:2], bool), (False,) * tokens.shape[1])]

    def read_prefix(self, observation: Observation) -> tuple[KeysValues, Bool[Array, "b t"]]:
        """Returns the keys and values of every VLM layer, and which prefix tokens are there."""
        prefix = self.embed_prefix(observation)
        return self.vlm.keys_values(prefix, remat=self.remat), prefix.mask

    @typecheck
    def expert_output(
        self,
        keys_values: KeysValues,
        prefix_mask: Bool[Array, "b t"],
        state: Float[Array, "b ad"],
        noisy_actions: Float[Array, "b f ah ad"],
        time: Float[Array, "b f"],
        modulations: Modulations | None = None,
    ) -> Float[Array, "b f a d"]:
        """Returns what the action expert makes of `f` noisy chunks per observation: all tokens of the suffix.

        With `modulations`, those of `time`, they are not worked out again.
        """
        suffix, condition = self.suffix.embed(state, noisy_actions, time, dtype=jnp.dtype(self.config.dtype))
        return self.action_expert(
            suffix, condition, keys_values, prefix_mask, remat=self.remat, modulations=modulations
        )

    def modulations_per_step(self, times: Float[Array, " steps"]) -> Modulations:
        """Returns the modulations of the expert's norms at flow times, for any observation, steps on axis 0.

        Nothing else is known of a chunk before it is sampled; each kernel is read once for all steps.
        """
        of_layers, of_final_norm = self.action_expert.modulations(self.suffix.condition(times[:, None]))
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[:, :, None], of_layers), of_final_norm[:, None]


def all_images(observation: Observation) -> UInt8[Array, "images size size 3"]:
    """Returns the images of all cameras of each observation in turn, cameras by name."""
    # jit sorts a dict's keys, so any other order would depend on the caller.
    images = jnp.stack([observation.images[name] for name in sorted(observation.images)], axis=1)
    return images.reshape(-1, *images.shape[2:])


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of one size as pure functions of its parameters; hashable, so it can be a static argument of jit."""

    config: ModelConfig
    mesh: Mesh | None = None
    """Mesh that batches are split over; None: wherever the compiler puts them."""

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        # Eager sharding off: else flax asks for a mesh wherever a named parameter is created, here as well.
        with nnx.use_eager_sharding(False):
            return nnx.split(nnx.eval_shape(lambda: Network(self.config, rngs=nnx.Rngs(0))))

    def abstract_params(self) -> Params:
        """Returns the parameters' shapes and types as a nested dict; takes no memory at any size."""
        return nnx.to_pure_dict(self._abstract[1])

    def logical_axes(self) -> Params:
        """Returns, for each parameter, the tuple of its axes' logical names (see `sharding.RULES`)."""
        specs = nnx.to_pure_dict(nnx.get_partition_spec(self._abstract[1]))
        return jax.tree.map(tuple, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))

    def init_params(self, key: PRNGKeyArray | Array) -> Params:
        """Returns random float32 parameters; run it under jit with `out_shardings` to draw them into their shards."""
        with nnx.use_eager_sharding(False):
            rngs = nnx.Rngs(key, lora=jax.random.fold_in(key, LORA_STREAM))
            return nnx.to_pure_dict(nnx.state(Network(self.config, rngs=rngs), nnx.Param))

    def network(self, params: Params) -> Network:
        """Returns the network holding `params`."""
        return nnx.merge(self._abstract[0], params)

    def loss(
        self, params: Params, batch: Batch, key: PRNGKeyArray | Array, *, flow_samples: int = 1
    ) -> tuple[Float[Array, ""], Float[Array, " ad"]]:
        """Returns the flow-matching loss over the entries that count, overall and per action dim.

        `flow_samples` draws of noise and time per observation share one pass through vision tower and VLM.
        """
        return self.loss_at(params, batch, *self.draw(key, batch.actions.shape[0], flow_samples))

    def draw(
        self, key: PRNGKeyArray | Array, b: int, flow_samples: int
    ) -> tuple[Float[Array, "b f ah ad"], Float[Array, "b f"]]:
        """Returns noise and flow times for `b` observations; on a mesh each device draws those of its rows."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (b, flow_samples, self.config.action_horizon, self.config.action_dim))
        time = flow_matching.sample_time(time_key, (b, flow_samples))
        with on_mesh(self.mesh):
            return split_batch(noise), split_batch(time)

    def loss_at(
        self, params: Params, batch: Batch, noise: Float[Array, "b f ah ad"], time: Float[Array, "b f"]
    ) -> tuple[Float[Array, ""], Float[Array, " ad"]]:
        """Returns the loss at given noise and times: mean over the entries that count, overall and per action dim."""
        return flow_matching.mean_errors(*self.squared_errors(params, batch, noise, time))

    @typecheck
    def squared_errors(
        self, params: Params, batch: Batch, noise: Float[Array, "b f ah ad"], time: Float[Array, "b f"]
    ) -> tuple[Float[Array, "b ad"], Float[Array, "b ad"]]:
        """Returns the velocity's squared errors, summed over flow samples and steps, and of how many entries."""
        noisy_actions, target_velocity = flow_matching.flow_path(batch.actions[:, None], noise, time)
        velocity = self.velocity(params, batch.observation, noisy_actions, time)
        return flow_matching.masked_squared_errors(velocity, target_velocity, batch.action_mask)

    @typecheck
    def velocity(
        self,
        params: Params,
        observation: Observation,
        noisy_actions: Float[Array, "b f ah ad"],
        time: Float[Array, "b f"],
    ) -> Float[Array, "b f ah ad"]:
        """Returns the float32 velocity of `f` noisy chunks per observation."""
        with on_mesh(self.mesh):
            network = self.network(params)
            prefix = network.read_prefix(observation)
            return network.suffix.velocity(network.expert_output(*prefix, observation.state, noisy_actions, time))

    @typecheck
    def sample_actions(
        self,
        params: Params,
        observation: Observation,
        noise: Float[Array, "b ah ad"],
        *,
        num_flow_steps: int,
        guide: flow_matching.Guide | None = None,
    ) -> Float[Array, "b ah ad"]:
        """Returns the action chunk that `noise` flows to, normalised as in training.

        A guide leads it towards actions that are known; None changes nothing, to the bit.
        """
        network = self.network(params)

        def velocity(noisy_actions: Array, time: Array, modulations: Modulations) -> Array:
            times = jnp.full((noise.shape[0], 1), time)
            noisy = (noisy_actions[:, None], times)
            suffix_out = network.expert_output(*prefix, observation.state, *noisy, modulations)
            return network.suffix.velocity(suffix_out)[:, 0]

        with on_mesh(self.mesh):
            prefix = network.read_prefix(observation)
            times = jnp.asarray(flow_matching.flow_times(num_flow_steps))
            known = network.modulations_per_step(times)
            start = noise.astype(jnp.float32)
            return flow_matching.integrate(
                velocity, start, num_flow_steps=num_flow_steps, guide=guide, per_step=(known,)
            )
