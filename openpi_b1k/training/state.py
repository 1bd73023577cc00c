"""Everything that changes while training, and where each array of it lies."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import optax

from openpi_b1k import sharding
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.typing import Array, Int, Params, PRNGKeyArray, PyTree

logger = logging.getLogger(__name__)

INIT_STREAM, STEP_STREAM = 0, 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run between two updates. Random keys are not part of it: they follow from seed and step."""

    step: Int[Array, ""]
    """Completed updates."""
    params: Params
    """The live parameters: what gradients are taken of."""
    opt_state: optax.OptState
    ema_params: Params | None
    """Moving average of the parameters in float32, if the run keeps one."""


def init_key(seed: int) -> PRNGKeyArray:
    """Returns the key that initial parameters are drawn from."""
    return jax.random.fold_in(jax.random.key(seed), INIT_STREAM)


def step_key(seed: int, step: Int[Array, ""]) -> PRNGKeyArray:
    """Returns the key of the update that follows `step` completed ones."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STEP_STREAM), step)


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the state as shapes, dtypes and shardings, with no memory behind them.

    Adam's moments and the moving average lie where their parameters do; all else is replicated.
    """
    params = model.abstract_params()
    state = jax.eval_shape(lambda params: _state_of(params, optimizer, config), params)
    param_shardings = sharding.param_shardings(mesh, params, model.logical_axes())
    replicated = sharding.replicated(mesh)
    opt_state_shardings = optax.tree_map_params(
        optimizer,
        lambda _, of_param: of_param,
        state.opt_state,
        param_shardings,
        transform_non_params=lambda _: replicated,
    )
    shardings = TrainState(
        step=replicated,  # type: ignore[arg-type]  # a tree of shardings has the state's structure, not its leaves
        params=param_shardings,
        opt_state=opt_state_shardings,
        ema_params=None if state.ema_params is None else param_shardings,
    )
    return jax.tree.map(
        lambda leaf, of_leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of_leaf), state, shardings
    )


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
    """Returns the named groups of `random_state`'s parameters, and draws no others; `abstract` says where they lie."""

    def create(key: PRNGKeyArray) -> Params:
        params = model.init_params(key)
        return {group: params[group] for group in groups}

    shardings = {group: shardings_of(abstract[group]) for group in groups}
    return jax.jit(create, out_shardings=shardings)(init_key(config.seed))


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, config: TrainConfig, abstract: TrainState
) -> TrainState:
    """Returns a fresh state around given parameters, which are used up."""

    def create(params: Params) -> TrainState:
        return _state_of(params, optimizer, config)

    return jax.jit(create, out_shardings=shardings_of(abstract), donate_argnums=0)(params)


def _state_of(params: Params, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    ema_params = None
    if config.ema_decay is not None:
        ema_params = jax.tree.map(lambda param: param.astype(jnp.float32), params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params)


def split(state: TrainState) -> tuple[Params, dict[str, PyTree]]:
    """Returns (the weights to act with, what else training needs), as a checkpoint holds them.

    The first is the moving average where there is one, and then the second has the live parameters under `params`;
    without an average the first is the live parameters. Source of the split: openpi `training/checkpoints.py`.
    """
    rest = {"step": state.step, "opt_state": state.opt_state}
    if state.ema_params is None:
        return state.params, rest
    return state.ema_params, rest | {"params": state.params}


def merge(weights: Params, rest: dict[str, PyTree]) -> TrainState:
    """Returns the state that `split` took apart."""
    if "params" in rest:
        return TrainState(rest["step"], rest["params"], rest["opt_state"], weights)
    return TrainState(rest["step"], weights, rest["opt_state"], None)
