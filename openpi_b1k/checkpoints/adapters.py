"""Adapters as a checkpoint holds them: beside the dense weights that they are merged into, and usable without these.

`lora/` is an Orbax item with `lora_a` and `lora_b` of each adapted kernel, under our names; `adapter.json` says with
which rank and alpha, and for which weights they were made. The two, copied elsewhere, are a few hundredths of a
checkpoint's size. Merged into those weights (`models/lora.py`) they give its `params/`.
"""

import pathlib
from typing import Any

import jax

from openpi_b1k import paths
from openpi_b1k.checkpoints import orbax_tree
from openpi_b1k.checkpoints.adapter_info import ADAPTER_FILE, ITEM, read_info
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.model import ADAPTED_PARTS, LoraConfig
from openpi_b1k.typing import Params


def load_adapters(
    address: str | pathlib.Path, sharding: jax.sharding.Sharding | None = None
) -> tuple[Params, LoraConfig]:
    """Returns the adapters of a checkpoint under our names, and their ranks and alphas, reading nothing else of it.

    Args:
        address: the checkpoint's directory, or one with its `lora/` and `adapter.json`; also what `paths.fetch` takes.
        sharding: where each adapter is put, as they are small; default: on the first device.

    Raises:
        FileNotFoundError: there are no adapters at `address`.
        ValueError: adapters and their description do not belong together.
    """
    checkpoint = paths.fetch(str(address))
    lora = read_info(checkpoint).lora
    directory = checkpoint / ITEM
    stored = orbax_tree.shapes(directory)
    _require_ranks(flatten(stored), lora, directory)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), stored)
    return orbax_tree.read(directory, abstract), lora


def _require_ranks(stored: dict[str, Any], lora: LoraConfig, directory: pathlib.Path) -> None:  # Any: abstract arrays
    """Checks that exactly the described groups have adapters, and with the described ranks."""
    found: dict[str, int] = {}
    for path, leaf in stored.items():
        part, _, rest = path.partition("/")
        if part not in ADAPTED_PARTS or not rest.endswith(("/lora_a", "/lora_b")):
            raise ValueError(f"{directory} holds {path!r}, which is no adapter's: names end with lora_a or lora_b")
        if path.endswith("/lora_a"):
            found[ADAPTED_PARTS[part]] = leaf.shape[-1]
    described = {role: getattr(lora, role).rank for role in lora.roles}
    if found != described:
        raise ValueError(
            f"{directory} and {ADAPTER_FILE} do not belong together: the adapters have the ranks {found}, and it "
            f"says {described}"
        )
