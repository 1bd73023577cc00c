"""The plan as text, and the script that prints it."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from configs import debug, pi05_b1k
from openpi_b1k.training import devices, plan, plan_choice, plan_table

REPOSITORY = pathlib.Path(__file__).parents[2]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/plan.py"), *args], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def full_report() -> str:
    config = dataclasses.replace(pi05_b1k.CONFIG, name="pi05_b1k")
    text, is_fitting = plan_table.report(config, devices.named("h100"), 8, 8)
    assert is_fitting
    return text


def test_the_parts_add_up_to_the_total(full_report: str):
    sizes = [int(size.replace(",", "")) for size in re.findall(r"([\d,]+) bytes per device", full_report)]

    assert sum(sizes[:-1]) == sizes[-1] == plan.estimate(plan_choice.resolve(pi05_b1k.CONFIG, 8, 80e9), 8).total


@pytest.mark.parametrize(
    "label",
    ["--fsdp 1", "--microbatches 4", "--model.remat full", "first moment in bfloat16", "--ema-decay 0.999", "LoRA"],
)
def test_each_setting_has_a_row_of_what_it_fits(full_report: str, label: str):
    (row,) = [line for line in full_report.splitlines() if line.startswith(f"  {label} ")]
    total, *marks = row.removeprefix(f"  {label}").split()

    assert marks == ["yes" if float(total) <= 0.95 * size else "-" for size in (24, 48, 80, 141)]


def test_the_suggestion_is_a_command(full_report: str):
    config = plan_choice.resolve(pi05_b1k.CONFIG, 8, 80e9)

    assert f"suggestion: uv run scripts/train.py pi05_b1k {plan_choice.layout_flags(config)}" in full_report


def test_the_script_takes_flags_of_both_kinds():
    done = run("debug", "--batch-size", "16", "--device", "4090", "--num-devices", "4", "--fsdp=2")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("debug on 4 x rtx-4090 (24 GB), batch 16, ")
    assert "(parameters" in done.stdout
    assert "fsdp 2, 4 samples per device, remat none)" in done.stdout


def test_help_names_its_own_flags_and_recipes():
    done = run("--help")

    assert done.returncode == 0
    assert "--num-devices" in done.stdout
    assert "pi05_b1k_sample" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--device", "abacus"), "error: no device 'abacus'; known devices: "),
        (("--num-devices", "3"), "error: --batch-size 8 must be a multiple of the 3 devices"),
    ],
)
def test_what_it_cannot_plan_is_refused(args: tuple[str, ...], message: str):
    done = run("debug", *args)

    assert done.returncode == 2
    assert done.stderr.startswith(message)


def test_what_does_not_fit_is_no_success():
    text, is_fitting = plan_table.report(pi05_b1k.CONFIG, devices.named("4090"), 1, 8)

    assert not is_fitting
    assert "it does not fit: No fsdp, microbatches or remat make it fit; these do: " in text
    assert plan_table.report(debug.CONFIG, devices.named("4090"), 1, 8)[1]
