"""What is known of the devices: memory and peak speed by name, and whether a model of this size belongs on them.

Source: NVIDIA's data sheets; speeds are of dense bfloat16 products with float32 sums, without sparsity.
"""

import dataclasses
import os
import pathlib
import platform
import re
from collections.abc import MutableMapping
from typing import Any

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training.plan_activations import model_of
from openpi_b1k.training.trainable import count

GB = 1e9
LARGE_MODEL = 1_000_000_000
"""Parameters from which a model is refused on a CPU."""
DRIVER = pathlib.Path("/proc/driver/nvidia/version")
MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""Environment variable that says which part of a GPU JAX may take."""
CPU_RECIPES = ("debug", "pi05_b1k_sample")


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator."""

    name: str
    """As users write it."""
    pattern: str
    """Regular expression that finds it in JAX's `device_kind`, in lower case."""
    memory_gb: float
    peak_tflops: float

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return self.memory_gb * GB

    @property
    def peak_flops(self) -> float:
        """Operations per second at most."""
        return self.peak_tflops * 1e12


# In order: the first whose pattern is found counts.
DEVICES = (
    Device("gb200", r"gb200", 186, 2500),
    Device("b200", r"b200", 180, 2250),
    Device("gh200", r"gh200", 96, 989.4),
    Device("h200", r"h200", 141, 989.4),
    Device("h100-nvl", r"h100 nvl", 94, 835),
    Device("h100-pcie", r"h100 pcie", 80, 756),
    Device("h100", r"h100", 80, 989.4),
    Device("h800", r"h800", 80, 989.4),
    Device("a100-80", r"a100.*80\s*gb", 80, 312),
    Device("a100-40", r"a100", 40, 312),
    Device("l40s", r"l40s", 48, 362),
    Device("l40", r"l40", 48, 181),
    Device("a6000", r"rtx a6000", 48, 154.8),
    Device("rtx-6000-ada", r"rtx 6000 ada", 48, 364.2),
    Device("rtx-pro-6000", r"rtx pro 6000", 96, 503.8),
    Device("rtx-5090", r"rtx 5090", 32, 209.5),
    Device("rtx-4090", r"rtx 4090", 24, 165.2),
    Device("rtx-3090", r"rtx 3090", 24, 71),
)


def named(name: str) -> Device:
    """Returns the device that a user calls `name`, such as h100 or rtx-4090.

    Raises:
        KeyError: it is not in the table.
    """
    wanted = re.sub(r"[ _]", "-", name.lower())
    for device in DEVICES:
        if device.name in (wanted, f"rtx-{wanted}"):
            return device
    raise KeyError(f"no device {name!r}; known devices: {', '.join(device.name for device in DEVICES)}")


def of_kind(device_kind: str) -> Device | None:
    """Returns what is known of a device by JAX's name for it; None for one that is not in the table."""
    kind = device_kind.lower()
    return next((device for device in DEVICES if re.search(device.pattern, kind)), None)


def peak_flops(device_kind: str) -> float | None:
    """Returns the operations per second that a device can do at most; None where that is unknown, as for CPUs."""
    device = of_kind(device_kind)
    return None if device is None else device.peak_flops


def claim_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets JAX take 95 % of a GPU instead of 75 %, unless the user says otherwise; before the first use of a device."""
    environment.setdefault(MEMORY_FRACTION, "0.95")


def memory_of(device: Any) -> int | None:  # Any: jax.Device is no type
    """Returns the bytes that JAX may allocate on a device; None where it does not say, which is on CPUs."""
    return (device.memory_stats() or {}).get("bytes_limit")


def check_backend(config: TrainConfig, backend: str, driver: pathlib.Path = DRIVER) -> None:
    """Refuses a full-size model on a CPU, unless the config says to start anyway.

    Args:
        config: of the run.
        backend: what JAX computes on: cpu, gpu or tpu.
        driver: where an NVIDIA driver shows its version.

    Raises:
        ValueError: the model is too large for the CPU.
    """
    if backend != "cpu" or config.ignore_memory_plan:
        return
    size = count(model_of(config.model).abstract_params())
    if size < LARGE_MODEL:
        return
    model = f"a model of {size / GB:.2f} billion parameters would be trained on the CPU"
    anyway = "To do it anyway: --ignore-memory-plan"
    if driver.exists():
        raise ValueError(
            f"{model}, although this machine has an NVIDIA GPU: JAX is installed without CUDA, or JAX_PLATFORMS hides "
            f"it. Run `uv sync --extra {cuda_extra(driver.read_text())}`. {anyway}"
        )
    raise ValueError(
        f"{model}, as JAX finds no GPU on {platform.node() or 'this machine'}; recipes for a CPU: "
        f"{', '.join(CPU_RECIPES)}. {anyway}"
    )


def cuda_extra(driver_version: str) -> str:
    """Returns which extra of this project suits an NVIDIA driver: CUDA 13 needs 580 or newer.

    Source: CUDA Toolkit release notes, table of driver versions.
    """
    found = re.search(r"Kernel Module.*?\s(\d+)\.", driver_version)
    return "cuda13" if found and int(found[1]) >= 580 else "cuda12"
