"""Configs to and from JSON. What comes back is checked like what was typed: unknown keys and bad values are errors."""

import dataclasses
import json
import pathlib
from typing import Any

import pydantic

from openpi_b1k.config.train import TrainConfig

SHOWN = 4
"""Problems of a config that a message names."""


def to_json(config: TrainConfig) -> str:
    """Returns the config as indented JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """Returns the config that `to_json` wrote.

    Raises:
        ValueError: a key is unknown, a value has the wrong type or fails the config's own check.
    """
    return pydantic.TypeAdapter(TrainConfig).validate_json(text)


def read(path: pathlib.Path) -> TrainConfig:
    """Returns the config stored at `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold a config of this version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no config at {path}; a checkpoint of openpi_b1k has a config.json beside params/")
    try:
        return from_json(path.read_text())
    except pydantic.ValidationError as error:
        raise ValueError(f"{path} is not a config of this version: {_told(error)}") from error


def _told(error: pydantic.ValidationError) -> str:
    """Returns what is wrong with which keys, the first few."""
    problems = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()]
    shown = "; ".join(problems[:SHOWN])
    return shown + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:  # Any: any config dataclass; values are plain
    """Returns {dotted name: value} for every leaf field of a config; the parts of a mixture are numbered."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for i, part in enumerate(value):
                flat |= flatten(part, f"{prefix}{field.name}.{i}.")
        else:
            flat[prefix + field.name] = value
    return flat
