"""conversion.json: where a converted model comes from, and the numbers that show it."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Literal

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.model import GEMMA_2B, GEMMA_300M, GemmaConfig, ModelConfig
from openpi_b1k.conversion.gate import Row

FILE = "conversion.json"
VARIANTS = {GEMMA_2B: "gemma_2b", GEMMA_300M: "gemma_300m"}
"""Openpi's names of sizes."""
OTHER_SIZE = "other"


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for."""

    source: str
    """The address or path that was given."""
    weights_kind: Literal["ema", "live"]
    dtype: str
    """Of the matrices and tables; what is computed in float32 is stored in it."""
    layout: Literal["openpi", "lerobot", "openpi_b1k"]


def variant(config: GemmaConfig) -> str:
    """Returns openpi's name of a size."""
    return VARIANTS.get(config, OTHER_SIZE)


def openpi_fields(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns the five fields that openpi's converter writes into its config.json."""
    return {
        "action_dim": model.action_dim,
        "action_horizon": model.action_horizon,
        "paligemma_variant": variant(model.vlm),
        "action_expert_variant": variant(model.action_expert),
        "precision": dtype,
    }


def to_json(request: Request, model: ModelConfig, rows: tuple[Row, ...], weights: pathlib.Path | None) -> str:
    """Returns the record as JSON text, with the SHA-256 of the weights' file, if they are one."""
    record = dataclasses.asdict(request) | {
        "code_version": contents.code_version(),
        "model_type": model.kind,
        "max_token_len": model.max_prompt_tokens,
        "openpi": openpi_fields(model, request.dtype),
        "sha256": None if weights is None else sha256(weights),
        "gate": [dataclasses.asdict(row) | {"relative": row.relative} for row in rows],
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
