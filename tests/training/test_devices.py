"""The table of devices, and the refusal of large models on CPUs."""

import dataclasses
import pathlib

import jax
import pytest

from configs import debug, pi05_b1k
from openpi_b1k.training import devices

DRIVER_575 = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24 06:45:06 UTC 2025"
DRIVER_580 = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
    ],
)
def test_devices_are_known_by_the_name_jax_gives_them(kind: str, name: str):
    found = devices.of_kind(kind)

    assert found is not None
    assert found.name == name
    assert devices.peak_flops(kind) == found.peak_tflops * 1e12


def test_an_unknown_device_has_no_known_speed():
    assert devices.of_kind("cpu") is None
    assert devices.peak_flops("cpu") is None


def test_devices_are_found_by_what_users_call_them():
    assert devices.named("H100").memory_bytes == 80e9
    assert devices.named("RTX 4090") == devices.named("4090") == devices.named("rtx_4090")
    with pytest.raises(KeyError, match=r"no device 'h300'; known devices: gb200, b200, .*h100"):
        devices.named("h300")


def test_a_cpu_does_not_say_how_much_memory_it_has():
    assert devices.memory_of(jax.devices()[0]) is None


def test_jax_may_take_most_of_a_gpu_unless_the_user_says_otherwise():
    environment, given = {}, {devices.MEMORY_FRACTION: "0.5"}
    devices.claim_memory(environment)
    devices.claim_memory(given)

    assert environment == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    assert given == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}


def test_a_large_model_on_a_cpu_is_refused_with_recipes_that_suit_it(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"3\.35 billion parameters would be trained on the CPU, as JAX finds no GPU"):
        devices.check_backend(pi05_b1k.CONFIG, "cpu", tmp_path / "none")
    with pytest.raises(ValueError, match=r"recipes for a CPU: debug, pi05_b1k_sample\. .*--ignore-memory-plan"):
        devices.check_backend(pi05_b1k.CONFIG, "cpu", tmp_path / "none")


@pytest.mark.parametrize(("version", "extra"), [(DRIVER_575, "cuda12"), (DRIVER_580, "cuda13")])
def test_a_gpu_that_jax_cannot_use_is_told_how_to(tmp_path: pathlib.Path, version: str, extra: str):
    driver = tmp_path / "version"
    driver.write_text(version)

    with pytest.raises(ValueError, match=f"although this machine has an NVIDIA GPU.*`uv sync --extra {extra}`"):
        devices.check_backend(pi05_b1k.CONFIG, "cpu", driver)


def test_what_suits_the_backend_is_let_through(tmp_path: pathlib.Path):
    forced = dataclasses.replace(pi05_b1k.CONFIG, ignore_memory_plan=True)

    devices.check_backend(debug.CONFIG, "cpu", tmp_path / "none")
    devices.check_backend(pi05_b1k.CONFIG, "gpu", tmp_path / "none")
    devices.check_backend(forced, "cpu", tmp_path / "none")


def test_the_recipes_for_a_cpu_exist_and_are_small(tmp_path: pathlib.Path):
    import importlib

    for name in devices.CPU_RECIPES:
        devices.check_backend(importlib.import_module(f"configs.{name}").CONFIG, "cpu", tmp_path / "none")
