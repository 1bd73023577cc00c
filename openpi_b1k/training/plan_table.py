"""A memory plan as text: bytes per device by part, what each setting would change, and what fits which device."""

import dataclasses
from collections.abc import Iterator

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training.devices import Device
from openpi_b1k.training.flops import flops_per_sample
from openpi_b1k.training.plan import GB, Plan, estimate, fits, line
from openpi_b1k.training.plan_activations import REMATS
from openpi_b1k.training.plan_choice import advice, bigger_changes, divisors, layout_flags, resolve, suggestion

SIZES_GB = (24, 48, 80, 141)
"""Memory of the devices that the table asks about."""
PARTS = {
    "trained": "parameters, trained",
    "frozen": "parameters, frozen",
    "gradients": "gradients",
    "moments": "moments of Adam",
    "ema": "moving average",
    "activations": "activations",
    "batch": "batches",
    "workspace": "workspace",
}
MAX_PIECES_ROWS = 8
"""Numbers of microbatches that the table lists at most."""


def report(config: TrainConfig, device: Device, num_devices: int, devices_per_host: int) -> tuple[str, bool]:
    """Returns (the plan of a recipe as text, whether it fits the device).

    Args:
        config: of the run; what it leaves to auto is decided here as in training.
        device: what it would run on.
        num_devices: over all hosts.
        devices_per_host: of them that exchange arrays fast.

    Raises:
        ValueError: devices, batch, fsdp and microbatches do not go together.
    """
    local = min(devices_per_host, num_devices)
    decided = resolve(config, num_devices, device.memory_bytes, local)
    plan = estimate(decided, num_devices)
    is_fitting = fits(plan, device.memory_bytes)
    lines = [
        f"{config.name} on {num_devices} x {device.name} ({device.memory_gb:g} GB), batch {config.batch_size}, "
        f"{flops_per_sample(config) / 1e12:.2f} TFLOP per sample",
        *_parts(plan),
        "",
        line(plan, device.memory_bytes),
        "",
        f"{'with one thing changed':44} {'GB':>7}   fits " + " ".join(f"{size:>4} GB" for size in SIZES_GB),
        *(_row(label, estimate(option, num_devices)) for label, option in knobs(decided, num_devices)),
        "",
        *_by_memory(config, num_devices, local),
        "",
        _suggestion(config, decided, is_fitting, num_devices, device),
    ]
    return "\n".join(lines), is_fitting


def knobs(config: TrainConfig, num_devices: int) -> Iterator[tuple[str, TrainConfig]]:
    """Yields (label, config) of a decided config with one setting changed at a time, itself first."""
    yield "as planned", config
    for fsdp in divisors(num_devices):
        if fsdp != config.fsdp:
            yield f"--fsdp {fsdp}", dataclasses.replace(config, fsdp=fsdp)
    for pieces in divisors(config.batch_size // num_devices)[:MAX_PIECES_ROWS]:
        if pieces != config.microbatches:
            yield f"--microbatches {pieces}", dataclasses.replace(config, microbatches=pieces)
    for remat in REMATS:
        if remat != config.model.remat:
            yield (
                f"--model.remat {remat}",
                dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat)),
            )
    if config.ema_decay is None and not config.model.lora.roles:
        yield "--ema-decay 0.999", dataclasses.replace(config, ema_decay=0.999)
    for label, _, option in bigger_changes(config):
        yield label, option


def _parts(plan: Plan) -> Iterator[str]:
    """Yields a line for each part of the plan that takes anything."""
    for name, label in PARTS.items():
        size = getattr(plan, name)  # the keys of PARTS are fields of a plan
        if size:
            yield f"  {label:24} {size:>16,} bytes per device"
    yield f"  {'total':24} {plan.total:>16,} bytes per device"
    if plan.merged:
        yield f"  {'merged while saving':24} {plan.merged:>16,} bytes per device, instead of what a step takes"


def _row(label: str, plan: Plan) -> str:
    marks = " ".join(f"{'yes' if fits(plan, size * GB) else '-':>7}" for size in SIZES_GB)
    return f"  {label:42} {plan.total / GB:>7.1f}        {marks}"


def _by_memory(config: TrainConfig, num_devices: int, num_local_devices: int) -> Iterator[str]:
    """Yields, for each size of memory, how the recipe fits, or what would."""
    for size in SIZES_GB:
        found = suggestion(config, num_devices, size * GB, num_local_devices)
        if found is not None:
            yield f"on {size:>3} GB: {layout_flags(found)} ({estimate(found, num_devices).total / GB:.1f} GB)"
        else:
            yield f"on {size:>3} GB: {advice(config, num_devices, size * GB, num_local_devices)}"


def _suggestion(config: TrainConfig, decided: TrainConfig, is_fitting: bool, num_devices: int, device: Device) -> str:
    if is_fitting:
        return f"suggestion: uv run scripts/train.py {config.name} {layout_flags(decided)} [your other flags]"
    return f"it does not fit: {advice(decided, num_devices, device.memory_bytes)}"
