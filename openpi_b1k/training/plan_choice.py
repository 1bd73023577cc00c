"""What a memory plan decides: whatever the config leaves open, the cheapest that fits, and what to change if none does.

Three things make a run smaller: sharing the state (fsdp) costs exchanges of kernels and gradients, microbatches cost
such an exchange, or a pass over the gradients, for each piece, and remat costs recomputation. They are weighed in one
unit, the time a device takes for one sample, forward and backward:

    microbatches * (samples of a piece on a device * RECOMPUTATION[remat] + time of a piece's exchange)

Among equals the first wins of fewest microbatches, fewest devices that share the state, least recomputation.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.training.plan import GB, MARGIN, Plan, estimate, fits, line
from openpi_b1k.training.plan_activations import REMATS

RECOMPUTATION = {"none": 1.0, "dots": 1.05, "full": 1.33}
"""Time of a step by remat: full adds a forward pass to three, dots the operations between matrix products."""
EXCHANGE_ALONE, EXCHANGE_DATA, EXCHANGE_FSDP, EXCHANGE_HOSTS = 0.5, 1.5, 2.0, 16.0
"""Of a piece, in samples: gradients added up on one device, summed over devices, kernels gathered and gradients
scattered within a host, and between hosts. At full size on an H100: 27 GB of gradients and sums at 3 TB/s, 20 GB and
27 GB at 450 GB/s between GPUs, or at 50 GB/s between hosts, against 0.03 s for a sample's 13.5 TFLOP."""


def resolve(
    config: TrainConfig, num_devices: int, memory_bytes: float | None, num_local_devices: int | None = None
) -> TrainConfig:
    """Returns the config with fsdp, microbatches and model.remat decided; what the user gave stays.

    Where nothing fits, that is the smallest there is, which `check` then refuses.

    Args:
        config: of the run.
        num_devices: over all processes.
        memory_bytes: of a device; None, which is a CPU, decides for one piece, one copy each and no recomputation.
        num_local_devices: of a process's host; default: all.

    Raises:
        ValueError: the devices cannot share the batch, or fsdp or microbatches as given.
    """
    options = list(_options(config, num_devices))
    if not options:
        raise ValueError(_explain_division(config, num_devices))
    if memory_bytes is None or len(options) == 1:
        return options[0]
    plans = [(estimate(option, num_devices), option) for option in options]
    fitting = [
        (_cost(plan, num_local_devices or num_devices), option) for plan, option in plans if fits(plan, memory_bytes)
    ]
    if fitting:
        return min(fitting, key=lambda one: one[0])[1]  # the first of the cheapest
    return min(plans, key=lambda one: one[0].total)[1]


def check(
    config: TrainConfig, num_devices: int, memory_bytes: float | None, num_local_devices: int | None = None
) -> Plan:
    """Returns the plan of a config in which everything is decided.

    Raises:
        ValueError: it does not fit into a device's memory (None: unknown, so anything does), and the config does not
            say to start anyway.
    """
    plan = estimate(config, num_devices)
    if memory_bytes is None or config.ignore_memory_plan or fits(plan, memory_bytes):
        return plan
    raise ValueError(
        f"this run does not fit: {line(plan, memory_bytes)}, of which {MARGIN:.0%} stay free. "
        f"{advice(config, num_devices, memory_bytes, num_local_devices)}. To try it anyway: --ignore-memory-plan"
    )


def advice(config: TrainConfig, num_devices: int, memory_bytes: float, num_local_devices: int | None = None) -> str:
    """Returns which flags make a run fit: those that leave its update as it is, else those that change it."""
    fitting = suggestion(config, num_devices, memory_bytes, num_local_devices)
    if fitting is not None:
        return f"It fits with {layout_flags(fitting)}"
    found, smallest = [], None
    for label, flags, option in bigger_changes(config):
        fitting = suggestion(option, num_devices, memory_bytes, num_local_devices)
        if fitting is None:
            total = estimate(resolve(_undecided(option), num_devices, memory_bytes), num_devices).total
            smallest = min(smallest or total, total)
        else:
            found.append(f"{label}: {flags} {layout_flags(fitting)}")
    nothing = "No fsdp, microbatches or remat make it fit"
    if found:
        return f"{nothing}; these do: " + "; or ".join(found)
    least = "" if smallest is None else f" (the smallest needs {smallest / GB:.1f} GB)"
    return f"{nothing}, nor do freezing or LoRA{least}: it needs more devices or larger ones"


def suggestion(
    config: TrainConfig, num_devices: int, memory_bytes: float, num_local_devices: int | None = None
) -> TrainConfig | None:
    """Returns the config with the fsdp, microbatches and remat that fit best, whatever it says of them; None: none."""
    config = resolve(_undecided(config), num_devices, memory_bytes, num_local_devices)
    return config if fits(estimate(config, num_devices), memory_bytes) else None


def layout_flags(config: TrainConfig) -> str:
    """Returns how a run is laid out, as flags."""
    return f"--fsdp {config.fsdp} --microbatches {config.microbatches} --model.remat {config.model.remat}"


def bigger_changes(config: TrainConfig) -> Iterator[tuple[str, str, TrainConfig]]:
    """Yields (what, its flags, config) of changes to the update itself that save memory, the mildest first.

    Each is by itself; what the config does already is left out.
    """
    halved = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, first_moment="bfloat16"))
    if config != halved:
        yield "first moment in bfloat16", "--optimizer.first-moment bfloat16", halved
    if config.ema_decay is not None:
        yield "no EMA", "--ema-decay None", dataclasses.replace(config, ema_decay=None)
    if not {"vision", "language"} <= set(config.frozen):
        expert = dataclasses.replace(config, train_expert_only=True)
        yield "training the action expert alone", "--train-expert-only", expert
    if not config.model.lora.roles:
        lora = LoraConfig(language=AdapterConfig(rank=16), action_expert=AdapterConfig(rank=32, alpha=32.0))
        yield (
            "LoRA",
            "--freeze vision language action_expert --ema-decay None --model.lora.language.rank 16 "
            "--model.lora.action-expert.rank 32 --model.lora.action-expert.alpha 32",
            dataclasses.replace(
                config,
                freeze=("vision", "language", "action_expert"),
                ema_decay=None,
                model=dataclasses.replace(config.model, lora=lora),
            ),
        )


def divisors(number: int) -> list[int]:
    """Returns what divides a number, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _undecided(config: TrainConfig) -> TrainConfig:
    model = dataclasses.replace(config.model, remat="auto")
    return dataclasses.replace(config, model=model, fsdp="auto", microbatches="auto")


def _options(config: TrainConfig, num_devices: int) -> Iterator[TrainConfig]:
    """Yields the config with everything decided in each way that devices and batch allow, the preferred ones first."""
    rows, rest = divmod(config.batch_size, num_devices)
    if rest:
        return
    pieces = divisors(rows) if config.microbatches == "auto" else [config.microbatches]
    shares = divisors(num_devices) if config.fsdp == "auto" else [config.fsdp]
    remats = REMATS if config.model.remat == "auto" else [config.model.remat]
    for microbatches, fsdp, remat in itertools.product(pieces, shares, remats):
        if rows % microbatches == 0 and num_devices % fsdp == 0:
            model = dataclasses.replace(config.model, remat=remat)
            yield dataclasses.replace(config, model=model, fsdp=fsdp, microbatches=microbatches)


def _cost(plan: Plan, num_local_devices: int) -> float:
    """Returns the time of a step, in samples per device (see above)."""
    if plan.fsdp > num_local_devices:
        exchange = EXCHANGE_HOSTS
    elif plan.fsdp > 1:
        exchange = EXCHANGE_FSDP
    else:
        exchange = EXCHANGE_DATA if plan.num_devices > 1 else EXCHANGE_ALONE
    return plan.microbatches * (plan.rows * RECOMPUTATION[plan.remat] + exchange)


def _explain_division(config: TrainConfig, num_devices: int) -> str:
    if config.batch_size % num_devices:
        return (
            f"--batch-size {config.batch_size} must be a multiple of the {num_devices} devices; nearest: "
            f"{max(config.batch_size // num_devices, 1) * num_devices}"
        )
    if config.fsdp != "auto" and num_devices % config.fsdp:
        return f"--fsdp {config.fsdp} does not divide the {num_devices} devices; choose one of {divisors(num_devices)}"
    return (
        f"--microbatches {config.microbatches} does not divide the {config.batch_size // num_devices} samples of each "
        f"device (--batch-size {config.batch_size}); choose one of {divisors(config.batch_size // num_devices)}"
    )
