"""The operations of a sample against a count of the products in the gradient itself."""

import dataclasses
import math

import jax
import jax.extend.core
import pytest

from configs import pi05_b1k, pi05_b1k_expert
from openpi_b1k import sharding
from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.flops import flops_per_sample
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state
from openpi_b1k.training.step import train_step
from tests.training import plan_cases

# Up to three layers are written out, so that each product of the gradient stands in the program once.
CASES = {
    "all": {},
    "several flow samples": {"flow_samples": 3},
    "no vision": {"freeze": ("vision",)},
    "expert alone": {"train_expert_only": True},
    "expert frozen": {"freeze": ("action_expert",)},
    # With the vision tower trained: else the first of two layers needs no gradient of its input, and the count has one.
    "adapters": {"freeze": ("language", "action_expert"), "lora": LoraConfig(language=AdapterConfig(rank=4))},
    "pi0": {"kind": "pi0", "flow_samples": 3},
    "pi0's projections alone": {"kind": "pi0", "freeze": ("vision", "language", "action_expert")},
    "projections alone": {"freeze": ("vision", "language", "action_expert")},
}


def counted(config: TrainConfig) -> float:
    """Returns the operations of all matrix products of an update, found in its program after dead code is gone."""
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    model, optimizer = Model(config.model), make_optimizer(config)
    state = abstract_state(model, optimizer, config, mesh)
    program = jax.make_jaxpr(train_step(model, optimizer, config))(state, plan_cases.abstract_batch(config, mesh))
    return sum(operations(equation) for equation in equations(program.jaxpr))


def equations(jaxpr: jax.extend.core.Jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(inner, jax.extend.core.ClosedJaxpr):
                    yield from equations(inner.jaxpr)
                elif isinstance(inner, jax.extend.core.Jaxpr):
                    yield from equations(inner)


def operations(equation: jax.extend.core.JaxprEqn) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_of_the_gradient(name: str):
    changes = dict(CASES[name])
    lora = changes.pop("lora", LoraConfig())
    config = plan_cases.config(remat="none", depth=2, batch_size=2, **changes)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=lora))

    assert flops_per_sample(config) == pytest.approx(counted(config) / 2, rel=0.02)


def test_a_sample_of_the_full_model():
    assert flops_per_sample(pi05_b1k.CONFIG) == pytest.approx(13.6e12, rel=0.01)


def test_what_is_frozen_costs_a_forward_pass():
    """Vision tower and VLM are 97 % of the operations, a third of which remains."""
    full, expert = flops_per_sample(pi05_b1k.CONFIG), flops_per_sample(pi05_b1k_expert.CONFIG)

    assert 1 / 3 < expert / full < 0.36


def test_recomputation_does_not_count():
    model = dataclasses.replace(pi05_b1k.CONFIG.model, remat="full")
    assert flops_per_sample(dataclasses.replace(pi05_b1k.CONFIG, model=model)) == flops_per_sample(pi05_b1k.CONFIG)
