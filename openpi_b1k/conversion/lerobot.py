"""A policy directory as LeRobot's pi05 reads it: names, config.json, and the processors with their statistics.

Source: lerobot 0.4.4, `policies/pi05` and `processor`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from openpi_b1k.checkpoints import safetensors
from openpi_b1k.config.data import PALIGEMMA_TOKENIZER
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.conversion import directory, record
from openpi_b1k.conversion.source import Source
from openpi_b1k.robots.r1pro import r1pro

KNOWN_SIZES = ("gemma_2b", "gemma_300m")
MODES = {"quantile": "QUANTILES", "zscore": "MEAN_STD"}
STATISTICS = {"quantile": ("q01", "q99"), "zscore": ("mean", "std")}
TOKENIZER = "google/paligemma-3b-pt-224"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
NORMALIZER_STATE = f"{PREPROCESSOR}_step_2_normalizer_processor.safetensors"
UNNORMALIZER_STATE = f"{POSTPROCESSOR}_step_0_unnormalizer_processor.safetensors"
EPSILON = 1e-8  # LeRobot's default
_PALIGEMMA = "paligemma_with_expert.paligemma"


class Lerobot:
    """LeRobot's pi05: openpi's tensors under `model.`, the table of embeddings under two names."""

    prefix = "model."
    copies: Mapping[str, str] = {
        f"{_PALIGEMMA}.lm_head.weight": f"{_PALIGEMMA}.model.language_model.embed_tokens.weight"
    }

    def require_possible(self, source: Source) -> None:
        """Checks that LeRobot's pi05 can hold the model and undo its transforms.

        Raises:
            ValueError: it cannot; tells what stands in the way.
        """
        problems = [text for is_there, text in _obstacles(source.config) if is_there]
        if problems:
            raise ValueError(f"--layout lerobot cannot hold this model: {'; '.join(problems)}. --layout openpi can")

    def write(self, source: Source, dtype: str, target: pathlib.Path) -> None:
        """Writes config.json and both processors with their statistics."""
        contents = {
            "config.json": _config(source.config, dtype),
            f"{PREPROCESSOR}.json": {"name": PREPROCESSOR, "steps": _preprocessor(source.config)},
            f"{POSTPROCESSOR}.json": {"name": POSTPROCESSOR, "steps": _postprocessor(source.config)},
        }
        texts = {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
        directory.write_files(target, {name: text.encode() for name, text in texts.items()})
        statistics = _statistics(source)
        entries = {key: (array.dtype, array.shape) for key, array in statistics.items()}
        for name in (NORMALIZER_STATE, UNNORMALIZER_STATE):
            with safetensors.Writer(target / name, entries, {}) as writer:
                for key, array in statistics.items():
                    writer.write(key, array)


def _obstacles(config: TrainConfig) -> list[tuple[bool, str]]:
    model, data = config.model, config.data
    sizes = [record.variant(one) for one in (model.vlm, model.action_expert)]
    return [
        (model.kind != "pi05", f"its kind is {model.kind}, the layout is pi05's"),
        (model.point_clouds, "LeRobot has no encoder of point clouds"),
        ("segmentation" in data.modalities, "LeRobot has no segmentation image"),
        (not set(sizes) <= set(KNOWN_SIZES), f"LeRobot knows the sizes {', '.join(KNOWN_SIZES)}, not {sizes}"),
        (bool(data.transforms.delta_fields), "its actions are relative (delta_fields), which LeRobot does not undo"),
        (data.transforms.per_step_norm, "its actions have statistics for each step, LeRobot's have one set"),
        (data.transforms.tokenizer != PALIGEMMA_TOKENIZER, f"LeRobot reads prompts with {TOKENIZER} alone"),
    ]


def _features(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns LeRobot's input and output features; cameras by name, the order this model was trained with."""
    robot, size = r1pro(config.data.transforms.state_layout), config.model.image_size
    images = {
        f"observation.images.{name}": {"type": "VISUAL", "shape": [3, size, size]}
        for name in sorted(config.data.cameras)
    }
    state = {"observation.state": {"type": "STATE", "shape": [robot.state.size]}}
    return images | state, {"action": {"type": "ACTION", "shape": [robot.action.size]}}


def _norm_map(config: TrainConfig) -> dict[str, str]:
    mode = MODES[config.data.transforms.normalization]
    return {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}


def _config(config: TrainConfig, dtype: str) -> dict[str, Any]:
    model, (inputs, outputs) = config.model, _features(config)
    return {
        "type": "pi05",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "paligemma_variant": record.variant(model.vlm),
        "action_expert_variant": record.variant(model.action_expert),
        "dtype": dtype,
        "chunk_size": model.action_horizon,
        "n_action_steps": model.action_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "num_inference_steps": model.num_flow_steps,
        "image_resolution": [model.image_size, model.image_size],
        "tokenizer_max_length": model.max_prompt_tokens,
        "normalization_mapping": _norm_map(config),
        "push_to_hub": False,
    }


def _scaler(config: TrainConfig, features: dict[str, Any], name: str, state_file: str) -> dict[str, Any]:
    settings = {"eps": EPSILON, "features": features, "norm_map": _norm_map(config)}
    return {"registry_name": name, "config": settings, "state_file": state_file}


def _preprocessor(config: TrainConfig) -> list[dict[str, Any]]:
    inputs, outputs = _features(config)
    tokenizer = {
        "max_length": config.model.max_prompt_tokens,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": TOKENIZER,
    }
    return [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        _scaler(config, inputs | outputs, "normalizer_processor", NORMALIZER_STATE),
        {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokenizer},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]


def _postprocessor(config: TrainConfig) -> list[dict[str, Any]]:
    outputs = _features(config)[1]
    return [
        _scaler(config, outputs, "unnormalizer_processor", UNNORMALIZER_STATE),
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]


def _statistics(source: Source) -> dict[str, np.ndarray]:
    """Returns the statistics of state and actions by LeRobot's names."""
    transforms = source.config.data.transforms
    stats = source.assets.norm_stats.for_robot(r1pro(transforms.state_layout))
    fields = {"observation.state": stats.state, "action": stats.actions}
    return {
        f"{feature}.{statistic}": np.asarray(getattr(field, statistic), np.float32)
        for feature, field in fields.items()
        for statistic in STATISTICS[transforms.normalization]
    }
