"""What a plan decides where a recipe leaves it open, and what it says where nothing fits."""

import dataclasses

import pytest

from configs import debug, pi05_b1k
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training import plan, plan_choice

FULL = pi05_b1k.CONFIG
GB = 1e9


def layout(config: TrainConfig) -> tuple[object, object, str]:
    return config.fsdp, config.microbatches, config.model.remat


def with_remat(config: TrainConfig, remat: str) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


@pytest.mark.parametrize(
    ("num_devices", "memory_gb"), [(1, 80), (1, 141), (8, 24), (8, 48), (8, 80), (8, 141), (32, 80)]
)
def test_what_is_decided_fits_and_divides(num_devices: int, memory_gb: int):
    config = plan_choice.resolve(FULL, num_devices, memory_gb * GB, min(num_devices, 8))
    planned = plan_choice.check(config, num_devices, memory_gb * GB)

    assert "auto" not in layout(config)
    assert num_devices % planned.fsdp == 0
    assert planned.rows * planned.microbatches * num_devices == FULL.batch_size
    assert planned.fsdp <= 8  # within a host


def test_plenty_of_memory_costs_nothing():
    assert layout(plan_choice.resolve(FULL, 8, 10_000 * GB)) == (1, 1, "none")


def test_without_known_memory_nothing_is_saved():
    assert layout(plan_choice.resolve(FULL, 8, None)) == (1, 1, "none")


def test_what_the_user_gave_stays():
    given = dataclasses.replace(with_remat(FULL, "full"), fsdp=8)

    fsdp, microbatches, remat = layout(plan_choice.resolve(given, 8, 80 * GB))
    assert (fsdp, remat) == (8, "full")
    assert microbatches == 1  # 32 rows fit at once when everything is recomputed
    assert plan_choice.resolve(debug.CONFIG, 4, 80 * GB) == debug.CONFIG


def test_more_memory_never_costs_more_time():
    """The rule of thumb by which options are compared, written out once more."""
    costs = []
    for memory_gb in (24, 48, 80, 141, 1000):
        planned = plan.estimate(plan_choice.resolve(FULL, 8, memory_gb * GB), 8)
        exchange = 2.0 if planned.fsdp > 1 else 1.5
        factor = {"none": 1.0, "dots": 1.05, "full": 1.33}[planned.remat]
        costs.append(planned.microbatches * (planned.rows * factor + exchange))
    assert costs == sorted(costs, reverse=True)


def test_states_are_shared_within_a_host_before_between_hosts():
    within = plan.estimate(plan_choice.resolve(FULL, 16, 80 * GB, 8), 16)
    across = plan.estimate(plan_choice.resolve(FULL, 16, 24 * GB, 1), 16)

    assert within.fsdp <= 8
    assert across.fsdp > 1  # one device cannot hold it, so there is no other way


def test_a_run_that_fits_another_way_is_refused_with_the_flags():
    config = dataclasses.replace(with_remat(FULL, "none"), fsdp=1, microbatches=1)

    with pytest.raises(ValueError, match="this run does not fit: memory plan: ") as refusal:
        plan_choice.check(config, 8, 80 * GB)
    fitting = plan_choice.suggestion(config, 8, 80 * GB)
    assert fitting is not None
    assert plan.fits(plan.estimate(fitting, 8), 80 * GB)
    assert f"It fits with {plan_choice.layout_flags(fitting)}." in str(refusal.value)
    assert "of 80.0 GB on each of 8 devices" in str(refusal.value)
    assert "--ignore-memory-plan" in str(refusal.value)


def test_where_no_layout_fits_bigger_changes_are_named():
    with pytest.raises(ValueError, match="No fsdp, microbatches or remat make it fit; these do: ") as refusal:
        plan_choice.check(plan_choice.resolve(FULL, 1, 24 * GB), 1, 24 * GB)
    assert "--train-expert-only --fsdp 1 --microbatches" in str(refusal.value)
    assert "LoRA: --freeze vision language action_expert" in str(refusal.value)


def test_where_nothing_fits_it_says_so():
    with pytest.raises(
        ValueError, match=r"nor do freezing or LoRA \(the smallest needs .* GB\): it needs more devices"
    ):
        plan_choice.check(plan_choice.resolve(FULL, 1, 4 * GB), 1, 4 * GB)


def test_a_refused_run_can_be_forced_and_an_unknown_memory_refuses_nothing():
    config = plan_choice.resolve(FULL, 1, 4 * GB)
    forced = dataclasses.replace(config, ignore_memory_plan=True)

    assert plan_choice.check(forced, 1, 4 * GB).total > 4 * GB
    assert plan_choice.check(config, 1, None).total > 4 * GB


@pytest.mark.parametrize(
    ("changes", "num_devices", "message"),
    [
        ({}, 3, "--batch-size 256 must be a multiple of the 3 devices; nearest: 255"),
        ({"fsdp": 3}, 8, r"--fsdp 3 does not divide the 8 devices; choose one of \[1, 2, 4, 8\]"),
        (
            {"microbatches": 3},
            64,
            r"--microbatches 3 does not divide the 4 samples of each device .*one of \[1, 2, 4\]",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(changes: dict, num_devices: int, message: str):
    with pytest.raises(ValueError, match=message):
        plan_choice.resolve(dataclasses.replace(FULL, **changes), num_devices, 80 * GB)
