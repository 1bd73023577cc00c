"""What `adapter.json` says of the adapters in a checkpoint's `lora/`; needs no JAX, unlike the adapters themselves."""

import dataclasses
import json
import pathlib
from typing import Literal

import pydantic

from openpi_b1k.config.model import FORBID_EXTRA, LoraConfig
from openpi_b1k.config.train import TrainConfig

ITEM = "lora"
ADAPTER_FILE = "adapter.json"


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """What adapters are and what they belong to."""

    lora: LoraConfig
    """Rank and alpha of each group."""
    base: str
    """Address of the weights that they were made for; none for random ones, of which only the checkpoint has a copy."""
    base_kind: Literal["ema", "live"]
    """Which weights of `base`."""
    schema_version: Literal[1] = 1

    __pydantic_config__ = FORBID_EXTRA


def files(config: TrainConfig) -> dict[str, bytes]:
    """Returns {path inside the checkpoint: content} of what describes a run's adapters; nothing if it has none."""
    if not config.model.lora.roles:
        return {}
    info = AdapterInfo(config.model.lora, config.weights, config.weights_kind)
    return {ADAPTER_FILE: (json.dumps(dataclasses.asdict(info), indent=2) + "\n").encode()}


def read_info(checkpoint: pathlib.Path) -> AdapterInfo:
    """Returns what the adapters of a checkpoint are.

    Raises:
        FileNotFoundError: it has none.
        ValueError: their description is not of this version.
    """
    path = checkpoint / ADAPTER_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {ADAPTER_FILE} in {checkpoint}; checkpoints of runs with model.lora have one, beside {ITEM}/"
        )
    try:
        return pydantic.TypeAdapter(AdapterInfo).validate_json(path.read_text())
    except pydantic.ValidationError as error:
        raise ValueError(f"{path} is not of this version: {error}") from error
