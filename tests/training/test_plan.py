"""The memory plan against the compiler's own account, and against what a real state takes."""

import dataclasses

import jax
import pytest

from configs import pi0_b1k, pi05_b1k, pi05_b1k_expert
from openpi_b1k import sharding
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models import layers
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training import plan, plan_choice, trainable
from openpi_b1k.training.optimizer import make_optimizer
from openpi_b1k.training.state import abstract_state, random_state
from tests.training import plan_cases

PREFIX = ("vision", "language")

# The planned bytes of a step over what the CPU compiler reserves, where activations are most of it. The compiler
# decides how layers overlap, so this is no equality: 0.9 to 1.3 is what the plan promises, and a remat, a depth or a
# number of rows that were left out would miss it several times over.
STEPS = {
    "none": plan_cases.config(remat="none", batch_size=4),
    "microbatches and flow samples": plan_cases.config(remat="dots", batch_size=32, microbatches=2, flow_samples=4),
    "more rows, deeper": plan_cases.config(remat="full", batch_size=48, depth=9),
    "pi0": plan_cases.config(kind="pi0", remat="full", flow_samples=2),
    "frozen": plan_cases.config(remat="dots", freeze=PREFIX, batch_size=32),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_what_is_planned(name: str):
    config = STEPS[name]
    _, temporary = plan_cases.compiled_bytes(config)
    planned = plan.estimate(config, 1)

    assert 0.9 < (planned.gradients + planned.activations + planned.workspace) / temporary < 1.3


def test_layers_that_are_written_out_take_no_more_than_planned():
    config = plan_cases.config(remat="none", batch_size=4, depth=4)
    assert config.model.vlm.depth <= layers.UNROLLED_DEPTHS["none"]
    _, temporary = plan_cases.compiled_bytes(config)
    planned = plan.estimate(config, 1)

    assert 0.9 < (planned.gradients + planned.activations + planned.workspace) / temporary < 3


def test_a_shared_state_takes_what_is_planned():
    config = plan_cases.config(remat="dots", fsdp=2)
    arguments, temporary = plan_cases.compiled_bytes(config, 2)
    planned = plan.estimate(config, 2)

    assert 0.9 < (planned.gradients + planned.activations + planned.workspace) / temporary < 1.3
    assert 0 <= arguments - planned.state < 0.05 * arguments + 1e6  # what is left is the batch


@pytest.mark.parametrize("fsdp", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"train_expert_only": True}], ids=str)
def test_the_planned_state_is_what_a_real_one_takes(fsdp: int, changes: dict):
    config = plan_cases.config(fsdp=fsdp, **changes)
    mesh = sharding.make_mesh(fsdp)
    model, optimizer = Model(config.model, mesh), make_optimizer(config)
    state = random_state(model, optimizer, config, abstract_state(model, optimizer, config, mesh))
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards[:1])

    assert plan.estimate(config, 4).state == held - state.step.nbytes


def full_size(base: TrainConfig = pi05_b1k.CONFIG, *, remat: str = "full", **changes: object) -> TrainConfig:
    model = dataclasses.replace(base.model, remat=remat)
    return dataclasses.replace(base, model=model, **{"fsdp": 1, "microbatches": 1, "batch_size": 32} | changes)


@pytest.mark.parametrize(
    ("recipe", "num_parameters"), [(pi05_b1k, 3_353_433_872), (pi0_b1k, 3_238_048_528)], ids=["pi05", "pi0"]
)
def test_the_full_model_has_the_published_parameters(recipe, num_parameters: int):
    planned = plan.estimate(full_size(recipe.CONFIG), 1)

    assert planned.trained == 4 * num_parameters
    assert planned.moments == 2 * planned.trained + 4  # and Adam's count
    assert planned.frozen == planned.ema == 0


def test_what_is_frozen_has_neither_gradients_nor_moments_nor_a_backward_pass():
    planned = plan.estimate(full_size(pi05_b1k_expert.CONFIG), 1)
    trained = planned.trained // 4

    assert 0.42e9 < trained < 0.44e9
    assert planned.frozen == pytest.approx(2 * (3_353_433_872 - trained), rel=1e-2)  # scales and biases are float32
    assert (planned.gradients, planned.moments) == (planned.trained, 2 * planned.trained + 4)
    assert planned.activations < plan.estimate(full_size(), 1).activations / 3


def test_each_setting_moves_its_own_part():
    base = plan.estimate(full_size(), 8)
    shared = plan.estimate(full_size(fsdp=8), 8)
    halved = plan.estimate(full_size(batch_size=64, microbatches=2), 8)
    optimizer = dataclasses.replace(pi05_b1k.CONFIG.optimizer, first_moment="bfloat16")

    assert shared.state == pytest.approx(base.state / 8, rel=2e-3)  # biases and scales are on every device
    assert (shared.activations, shared.batch) == (base.activations, base.batch)
    assert (halved.activations, halved.gradients) == (base.activations, 2 * base.gradients)
    assert plan.estimate(full_size(ema_decay=0.99), 8).ema == base.trained
    assert plan.estimate(full_size(optimizer=optimizer), 8).moments == base.moments - base.trained // 2
    assert full_size_activations("none") > 3 * full_size_activations("dots") > 3 * full_size_activations("full")


def full_size_activations(remat: str) -> int:
    return plan.estimate(full_size(remat=remat), 1).activations


def test_a_row_of_the_vlm_keeps_its_input_for_full_remat():
    """18 layers of 3 x 256 + 224 tokens of 2048 bfloat16, and the masks."""
    config = full_size()
    stored = jax.eval_shape(
        lambda params: trainable.as_stored(params, config), plan.model_of(config.model).abstract_params()
    )
    language = next(part for part in plan.part_memories(config, stored) if part.name == "language")

    assert language.saved["full"].per_row == pytest.approx(18 * 992 * 2048 * 2, rel=0.02)


def test_a_plan_fits_with_five_percent_to_spare():
    planned = plan.estimate(full_size(), 8)

    assert plan.fits(planned, planned.total / 0.95 + 1)
    assert not plan.fits(planned, planned.total / 0.95 - 1e6)


def test_adapters_are_what_lora_trains_and_merged_kernels_what_it_saves():
    (lora,) = [option for what, _, option in plan_choice.bigger_changes(full_size()) if what == "LoRA"]
    planned = plan.estimate(lora, 1)
    layers = 18 * (2 * 2048 * 256 * 8 + 2 * 2048 * 256 + 3 * 2048 * 16384)  # of the VLM: q and out, k and v, the MLP
    layers += 18 * (2 * 1024 * 256 * 8 + 2 * 1024 * 256 + 3 * 1024 * 4096)

    assert planned.merged == 4 * layers
    assert planned.trained < 0.05e9 * 4
    assert planned.moments == 2 * planned.trained + 4


def test_merging_adapters_takes_the_place_of_a_step():
    planned = plan.estimate(full_size(), 8)
    in_step = planned.gradients + planned.activations + planned.workspace

    assert dataclasses.replace(planned, merged=in_step).total == planned.total
    assert dataclasses.replace(planned, merged=in_step + 7).total == planned.total + 7
    assert "workspace 5.49, and 2.00 while saving; fsdp" in plan.line(dataclasses.replace(planned, merged=2 * 10**9))


def test_the_line_names_the_parts():
    line = plan.line(plan.estimate(full_size(fsdp=8, microbatches=2, batch_size=64), 8), 80e9)

    assert line.startswith("memory plan: ")
    assert "of 80.0 GB on each of 8 devices (parameters 1.68, gradients 3.36, moments 3.36, activations" in line
    assert line.endswith("fsdp 8, 2 x 4 samples per device, remat full)")


@pytest.mark.parametrize(
    ("changes", "num_devices", "message"),
    [
        ({"fsdp": "auto"}, 1, "fsdp auto, microbatches 1 and model.remat full must be decided"),
        ({"fsdp": 3}, 4, "fsdp 3 does not divide 4 devices"),
        ({"microbatches": 5}, 2, "batch_size 32 must be a multiple of 2 devices x 5 microbatches"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict, num_devices: int, message: str):
    with pytest.raises(ValueError, match=message):
        plan.estimate(full_size(**changes), num_devices)
