"""The numbers of the published recipes, and what a config refuses."""

import dataclasses
import re

import pytest

from configs import pi05_b1k, pi05_b1k_2026
from openpi_b1k.config.data import PALIGEMMA_TOKENIZER, DataConfig, SourceConfig, TransformConfig
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.config.serialize import flatten
from openpi_b1k.config.train import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig

SHARED = {
    "weights": "gs://openpi-assets/checkpoints/pi05_base/params",
    "model.action_horizon": 32,
    "model.action_dim": 32,
    "model.max_prompt_tokens": 224,
    "model.image_size": 224,
    "model.num_flow_steps": 10,
    "model.dtype": "bfloat16",
    "data.source": "b1k",
    "data.root": None,
    "data.tasks": (),
    "data.transforms.normalization": "quantile",
    "data.transforms.clip_normalized": 5.0,
    "data.transforms.mask_padding": True,
    "data.cameras": ("head", "left_wrist", "right_wrist"),
    "data.transforms.tokenizer": "gs://big_vision/paligemma_tokenizer.model",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 1e-10,
    "optimizer.clip_norm": 1.0,
    "schedule.warmup_steps": 1000,
    "schedule.peak_lr": 2.5e-5,
    "schedule.final_lr": 2.5e-6,
    "batch_size": 256,
    "num_steps": 50_000,
    "flow_samples": 1,
    "ema_decay": None,
    "exp_name": None,
    "checkpoint_dir": "checkpoints",
    "resume": False,
    "overwrite": False,
    "wandb": "off",
}
OWN = {
    pi05_b1k: {
        "data.generation": "2025",
        "data.transforms.state_layout": "grippers_last",
        "data.transforms.delta_fields": (),
    },
    pi05_b1k_2026: {
        "data.generation": "2026",
        "data.transforms.state_layout": "like_action",
        "data.transforms.delta_fields": ("torso", "left_arm", "right_arm"),
    },
}


@pytest.mark.parametrize("recipe", OWN, ids=lambda recipe: recipe.__name__)
def test_numbers_of_the_published_recipes(recipe):
    expected = SHARED | OWN[recipe]
    found = flatten(recipe.CONFIG)
    assert {name: found[name] for name in expected} == expected
    assert expected["data.transforms.tokenizer"] == PALIGEMMA_TOKENIZER


NAN = float("nan")
REFUSALS = [
    (GEMMA_TINY, {"width": 0}, "width must be at least 1; got 0"),
    (GEMMA_TINY, {"num_heads": 3, "num_kv_heads": 2}, "num_heads 3 must be a multiple of num_kv_heads 2"),
    (GEMMA_TINY, {"head_dim": 15}, "head_dim must be even, as positions turn pairs of entries; got 15, the nearest"),
    (SIGLIP_TINY, {"depth": -1}, "depth must be at least 1; got -1"),
    (SIGLIP_TINY, {"num_heads": 5}, "vision width 32 must be a multiple of its num_heads 5"),
    (ModelConfig(), {"action_dim": 0}, "action_dim must be at least 1; got 0"),
    (ModelConfig(), {"num_flow_steps": 0}, "num_flow_steps must be at least 1; got 0"),
    *[
        (
            ModelConfig(),
            {"action_expert": dataclasses.replace(ModelConfig().action_expert, **{name: value})},
            f"vlm and action_expert share one attention, so {name} must be equal; got {vlm} and {value}",
        )
        for name, vlm, value in [("depth", 18, 4), ("num_heads", 8, 4), ("head_dim", 256, 128)]
    ],
    (
        ModelConfig(),
        {"action_expert": dataclasses.replace(ModelConfig().action_expert, width=1023)},
        "action_expert.width must be even, for sines and cosines of the flow time; got 1023, the nearest are 1022 and",
    ),
    (ModelConfig(), {"image_size": 225}, "image_size 225 must be a multiple of vision.patch_size 14"),
    (
        TransformConfig(),
        {"delta_fields": ("left_leg",)},
        "no action field 'left_leg' in delta_fields; known fields: base, torso, left_arm, left_gripper, right_arm, "
        "right_gripper",
    ),
    (TransformConfig(), {"delta_fields": ("base",)}, "delta_fields must not hold 'base': its command"),
    (TransformConfig(), {"delta_fields": ("left_gripper",)}, "joint positions can be deltas: torso, left_arm, right"),
    (TransformConfig(), {"depth_stride": 0}, "depth_stride must be at least 1; got 0"),
    (SourceConfig(), {"cameras": ("tail",)}, "no camera 'tail'; known cameras: head, left_wrist, right_wrist"),
    (SourceConfig(), {"cameras": ()}, "cameras must name at least one camera; known cameras: head, left_wrist, right"),
    (SourceConfig(), {"cameras": ("head", "head")}, "cameras must name each once; got ('head', 'head')"),
    (SourceConfig(), {"episodes": (1, 1)}, "episodes must name each once; got (1, 1)"),
    (SourceConfig(), {"episodes": (-1,)}, "episodes and validation_episodes are positions counted from 0"),
    (SourceConfig(), {"validation_episodes": (0, -3)}, "episodes and validation_episodes are positions counted from 0"),
    (SourceConfig(), {"modalities": ("depth",)}, "modalities must hold 'rgb'; got ('depth',)"),
    (
        SourceConfig(),
        {"modalities": ("rgb", "depth"), "cameras": ("left_wrist",)},
        "depth and segmentation are the head camera's; cameras are ('left_wrist',)",
    ),
    (SourceConfig(), {"weight": 0.0}, "weight must be above 0; got 0.0"),
    (SourceConfig(), {"skill_weights": (("press", 1.5),)}, "in [0, 1]; got 1.5 for 'press': to see a skill more often"),
    (SourceConfig(), {"skill_weights": (("press", 1.0), ("press", 0.5))}, "skill_weights must name each skill once"),
    (DataConfig(), {"window_gb": 0.0}, "window_gb must be above 0; got 0.0"),
    (
        DataConfig(),
        {"extra_sources": (SourceConfig(),)},
        "the sources of a mixture need different names; got demonstrations, demonstrations",
    ),
    (
        DataConfig(),
        {"extra_sources": (SourceConfig(name="more", cameras=("head",)),)},
        "source 'more' must have the main source's cameras and modalities",
    ),
    (TransformConfig(), {"clip_normalized": 1.0}, "clip_normalized must be above 1 or None; got 1.0"),
    (DataConfig(), {"source": "sample"}, "sample_demos must be above 0 with source 'sample' and 0 otherwise; got 0"),
    (DataConfig(), {"sample_demos": 4}, "sample_demos must be above 0 with source 'sample' and 0 otherwise; got 4"),
    (DataConfig(), {"num_workers": -1}, "num_workers and frame_cache_gib must not be negative and prefetch at least 1"),
    (DataConfig(), {"prefetch": 0}, "and prefetch at least 1; got 8, 0.0 and 0"),
    (DataConfig(), {"frame_cache_gib": -1.0}, "must not be negative"),
    (DataConfig(), {"tasks": ("a", "a")}, "tasks must name each once; got ('a', 'a')"),
    (OptimizerConfig(), {"b1": 1.0}, "b1 and b2 must lie in [0, 1); got 1.0 and 0.95"),
    (OptimizerConfig(), {"b2": -0.1}, "b1 and b2 must lie in [0, 1); got 0.9 and -0.1"),
    (OptimizerConfig(), {"eps": 0.0}, "eps and clip_norm must be above 0 and weight_decay not negative; got 0.0"),
    (OptimizerConfig(), {"clip_norm": 0.0}, "eps and clip_norm must be above 0"),
    (OptimizerConfig(), {"weight_decay": -1.0}, "weight_decay not negative"),
    (ScheduleConfig(), {"warmup_steps": -1}, "warmup_steps must not be negative"),
    (ScheduleConfig(), {"final_lr": 1.0}, "0 <= final_lr <= peak_lr with peak_lr above 0; got 1000, 1.0 and 2.5e-05"),
    (ScheduleConfig(), {"peak_lr": 0.0, "final_lr": 0.0}, "with peak_lr above 0"),
    (OptimizerConfig(), {"eps": NAN}, "eps and clip_norm must be above 0 and weight_decay not negative; got nan"),
    (ScheduleConfig(), {"final_lr": NAN}, "0 <= final_lr <= peak_lr with peak_lr above 0; got 1000, nan"),
    (TransformConfig(), {"clip_normalized": NAN}, "clip_normalized must be above 1 or None; got nan"),
    (CheckpointConfig(), {"save_every": 0}, "save_every and keep_last must be at least 1; got 0 and 1"),
    (CheckpointConfig(), {"keep_last": 0}, "save_every and keep_last must be at least 1; got 1000 and 0"),
    (CheckpointConfig(), {"keep_every": 1500}, "keep_every must be a multiple of save_every, or nothing would be kept"),
    (CheckpointConfig(), {"keep_every": 0}, "keep_every must be a multiple of save_every"),
    *[
        (TrainConfig(), {name: 0}, f"{name} must be at least 1; got 0")
        for name in ("batch_size", "num_steps", "flow_samples", "fsdp", "log_every")
    ],
    (TrainConfig(), {"ema_decay": 1.0}, "ema_decay must lie in (0, 1) or be None; got 1.0"),
    (TrainConfig(), {"resume": True, "overwrite": True}, "resume continues a run and overwrite deletes it"),
    (TrainConfig(), {"num_steps": 1000}, "schedule.warmup_steps 1000 must be below num_steps 1000"),
    (TrainConfig(), {"rollouts": 50}, "rollouts needs data.source 'sample' and must not be negative; got 50 with 'b1k"),
    (
        TrainConfig(data=DataConfig(source="sample", sample_demos=4)),
        {"rollouts": 4, "data": DataConfig(source="sample", sample_demos=4, tasks=("a", "b"))},
        "rollouts play every task of the sample world, but data.tasks names a, b: train on all tasks, or give",
    ),
    (TrainConfig(), {"seed": -1}, "seed must lie in [0, 2**32); got -1"),
    (TrainConfig(), {"rollouts": -1}, "rollouts needs data.source 'sample' and must not be negative; got -1"),
]


@pytest.mark.parametrize(
    ("config", "changes", "message"), REFUSALS, ids=lambda value: ",".join(value) if isinstance(value, dict) else ""
)
def test_what_is_impossible_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    "config",
    [
        GemmaConfig(width=1, depth=1, mlp_dim=1, num_heads=1, num_kv_heads=1, head_dim=2),
        SiglipConfig(width=1, depth=1, mlp_dim=1, num_heads=1, patch_size=1),
        TransformConfig(clip_normalized=None, depth_stride=1, delta_fields=("torso",)),
        SourceConfig(cameras=("right_wrist", "head"), skill_weights=(("press", 0.0), ("all", 1.0)), episodes=(0,)),
        DataConfig(source="sample", sample_demos=1, num_workers=0, prefetch=1),
        OptimizerConfig(b1=0.0, b2=0.0, weight_decay=0.0),
        ScheduleConfig(warmup_steps=0, peak_lr=1.0, final_lr=0.0),
        CheckpointConfig(save_every=1, keep_every=None),
        TrainConfig(schedule=ScheduleConfig(warmup_steps=0), num_steps=1, batch_size=1),
    ],
    ids=lambda config: type(config).__name__,
)
def test_what_is_just_possible_is_accepted(config):
    assert dataclasses.replace(config) == config
