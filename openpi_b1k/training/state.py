"""Everything that changes while training, and where each array of it lies."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from openpi_b1k import sharding
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models import lora
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.trainable import (
    adapted_kernels,
    adapters,
    as_stored,
    combine,
    partition,
    without_adapters,
)
from openpi_b1k.typing import Array, Int, Params, PRNGKeyArray, PyTree

INIT_STREAM, STEP_STREAM, AUGMENTATION_STREAM = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run between two updates. Random keys are not part of it: they follow from seed and step."""

    step: Int[Array, ""]
    """Completed steps, those included whose update was skipped because it was not finite."""
    params: Params
    """The live parameters that are trained, in float32: what gradients are taken of."""
    frozen: Params
    """The others, as they are stored (`trainable.stored_dtype`)."""
    opt_state: optax.OptState
    """Of the trained parameters alone."""
    ema_params: Params | None
    """Moving average of the trained parameters in float32, if the run keeps one."""


def full(state: TrainState) -> Params:
    """Returns all live parameters, trained and frozen, as the model takes them."""
    return combine(state.params, state.frozen)


def acting(state: TrainState) -> Params:
    """Returns all parameters to act with: those that are trained as their moving average, where there is one."""
    return combine(state.params if state.ema_params is None else state.ema_params, state.frozen)


def init_key(seed: int) -> PRNGKeyArray:
    """Returns the key that initial parameters are drawn from."""
    return jax.random.fold_in(jax.random.key(seed), INIT_STREAM)


def step_key(seed: int, step: Int[Array, ""]) -> PRNGKeyArray:
    """Returns the key for noise and times of the step that follows `step` completed ones."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STEP_STREAM), step)


def augmentation_key(seed: int, step: Int[Array, ""]) -> PRNGKeyArray:
    """Returns the key for the images of the step that follows `step` completed ones."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), AUGMENTATION_STREAM), step)


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> TrainState:
    """Returns the state as shapes, types and shardings, without memory behind them, or devices if the mesh is abstract.

    Adam's moments and the moving average lie where their parameters do; all else is replicated.
    """
    params = model.abstract_params()
    state = jax.eval_shape(lambda params: _state_of(params, optimizer, config), params)
    trained, frozen = partition(sharding.param_shardings(mesh, params, model.logical_axes()), config)
    replicated = sharding.replicated(mesh)
    opt_state_shardings = optax.tree_map_params(
        optimizer,
        lambda _, of_param: of_param,
        state.opt_state,
        trained,
        transform_non_params=lambda _: replicated,
    )
    shardings = TrainState(
        step=replicated,  # type: ignore[arg-type]  # a tree of shardings has the state's structure, not its leaves
        params=trained,
        frozen=frozen,
        opt_state=opt_state_shardings,
        ema_params=None if state.ema_params is None else trained,
    )
    return _placed(state, shardings)


def shardings_of(abstract: PyTree) -> PyTree:
    """Returns the sharding of each leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def random_state(
    model: Model, optimizer: optax.GradientTransformation, config: TrainConfig, abstract: TrainState
) -> TrainState:
    """Returns a fresh state with random parameters, each array made on the devices that hold it."""

    def create(key: PRNGKeyArray) -> TrainState:
        return _state_of(model.init_params(key), optimizer, config)

    return jax.jit(create, out_shardings=shardings_of(abstract))(init_key(config.seed))


def random_groups(model: Model, config: TrainConfig, abstract: Params, groups: list[str]) -> Params:
    """Returns the named children of `random_state`'s parameters, and draws no others.

    Args:
        model: the run's.
        config: the run's.
        abstract: at least the parameters of these groups that are wanted, with their shardings.
        groups: names such as point_cloud, the outermost of a parameter's path.
    """
    wanted = {group: abstract[group] for group in groups}

    def create(key: PRNGKeyArray) -> Params:
        params = as_stored(model.init_params(key), config)
        return jax.tree.map(lambda _, drawn: drawn, wanted, {group: params[group] for group in groups})

    return jax.jit(create, out_shardings=shardings_of(wanted))(init_key(config.seed))


def state_from_params(
    params: Params,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    abstract: TrainState,
) -> TrainState:
    """Returns a fresh state around given parameters, which are used up, and fresh adapters if the model has any.

    Args:
        params: all parameters but adapters, placed and in the types of `abstract`.
        model: the run's.
        optimizer: the run's.
        config: the run's.
        abstract: the state as `abstract_state` gives it.
    """

    def create(params: Params, key: PRNGKeyArray) -> TrainState:
        return _state_of(combine(params, adapters(model.init_params(key))), optimizer, config)

    create_there = jax.jit(create, out_shardings=shardings_of(abstract), donate_argnums=0)
    return create_there(params, init_key(config.seed))


def _state_of(params: Params, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    trained, frozen = partition(as_stored(params, config), config)
    ema_params = None if config.ema_decay is None else jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, optimizer.init(trained), ema_params)


def split(state: TrainState, config: TrainConfig) -> dict[str, PyTree]:
    """Returns the state as the items of a checkpoint; what need not be computed is the state's own arrays.

        params       the weights to act with, dense: the moving average where there is one, adapters merged into kernels
        train_state  step and opt_state; with an average also `params`, the live parameters that are trained; with
                     adapters `base`, the kernels as they are without them
        lora         the adapters, if the model has any

    So whoever reads `params` gets what the policy acts with. Source of the split: openpi `training/checkpoints.py`.
    """
    return _split(state, config, _merged)


def abstract_items(abstract: TrainState, config: TrainConfig) -> dict[str, PyTree]:
    """Returns the items of an abstract state, with its shardings: what to read a checkpoint by."""
    return _split(abstract, config, _abstract_merged)


def merge(items: dict[str, PyTree], config: TrainConfig) -> TrainState:
    """Returns the state that `split` took apart, bit for bit."""
    params, rest = items["params"], items["train_state"]
    if "lora" in items:
        params = combine(params, rest["base"], items["lora"])
    trained, frozen = partition(params, config)
    if "params" in rest:
        return TrainState(rest["step"], rest["params"], frozen, rest["opt_state"], trained)
    return TrainState(rest["step"], trained, frozen, rest["opt_state"], None)


def _split(
    state: TrainState, config: TrainConfig, merged: Callable[[Params, ModelConfig], Params]
) -> dict[str, PyTree]:
    params = acting(state)
    rest = {"step": state.step, "opt_state": state.opt_state}
    if state.ema_params is not None:
        rest["params"] = state.params
    if not config.model.lora.roles:
        return {"params": params, "train_state": rest}
    rest["base"] = adapted_kernels(params)
    dense = combine(without_adapters(params), merged(combine(rest["base"], adapters(params)), config.model))
    return {"params": dense, "train_state": rest, "lora": adapters(params)}


def _merged(adapted: Params, config: ModelConfig) -> Params:
    """Returns the kernels of a tree of kernels and their adapters, merged in float32, each where it was."""
    return jax.device_put(_merge(adapted, config), shardings_of(without_adapters(adapted)))


@functools.partial(jax.jit, static_argnums=1)
def _merge(adapted: Params, config: ModelConfig) -> Params:
    return lora.merge(adapted, config)


def _abstract_merged(adapted: Params, config: ModelConfig) -> Params:
    """Returns what `_merged` gives for abstract values."""
    merged = jax.eval_shape(lambda adapted: lora.merge(adapted, config), adapted)
    return _placed(merged, shardings_of(without_adapters(adapted)))


def _placed(abstract: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
