"""The numbers of the published recipes, and what a config refuses."""

import dataclasses
import json
import re

import pytest

from configs import pi0_b1k, pi05_b1k, pi05_b1k_2026, pi05_b1k_expert, pi05_b1k_pt12, pi05_b1k_radio, pi05_b1k_rft
from openpi_b1k.config.data import PALIGEMMA_TOKENIZER, DataConfig, SourceConfig, TransformConfig
from openpi_b1k.config.model import (
    GEMMA_TINY,
    SIGLIP_TINY,
    AdapterConfig,
    GemmaConfig,
    LoraConfig,
    ModelConfig,
    SiglipConfig,
)
from openpi_b1k.config.optimization import ROLES, CameraAugmentation, OptimizerConfig, ScheduleConfig
from openpi_b1k.config.serialize import flatten
from openpi_b1k.config.train import CheckpointConfig, DistributedConfig, TrainConfig

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
    "schedule.warmup": 0.02,
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


def test_variants_change_what_their_names_say_and_nothing_else(data_dir):
    full = flatten(pi05_b1k.CONFIG)

    def changes(config):
        return {name: value for name, value in flatten(config).items() if full.get(name) != value}

    expert = changes(pi05_b1k_expert.CONFIG)
    assert expert == {
        "schedule.warmup": 0.05,
        "checkpoints.save_every": 2000,
        "checkpoints.keep_every": None,
        "train_expert_only": True,
        "schedule.peak_lr": 2.5e-6,
        "schedule.final_lr": 2.5e-7,
        "num_steps": 20_000,
    }
    pi0 = changes(pi0_b1k.CONFIG)
    assert pi0 == {
        "weights": "gs://openpi-assets/checkpoints/pi0_base/params",
        "model.kind": "pi0",
        "model.max_prompt_tokens": 128,
    }
    radio = changes(pi05_b1k_radio.CONFIG)
    assert radio.pop("schedule.warmup") * radio["num_steps"] == pytest.approx(1000)
    assert radio == {"data.tasks": ("turning_on_radio",), "num_steps": 30_000}
    twelve = changes(pi05_b1k_pt12.CONFIG)
    assert twelve.keys() == {"data.tasks"}
    names = list(json.loads((data_dir / "prompts/2025.json").read_text()))
    numbers = [names.index(name) for name in twelve["data.tasks"]]
    assert numbers == [0, 1, 6, 17, 18, 22, 30, 32, 34, 35, 40, 45]
    mixed = changes(pi05_b1k_rft.CONFIG)
    assert (mixed["data.weight"], mixed["data.extra_sources.0.weight"]) == (0.6, 0.4)
    assert (mixed["schedule.peak_lr"], mixed["num_steps"], mixed["schedule.warmup"]) == (1e-6, 20_000, 0.05)


NAN = float("nan")
ADAPTED = ModelConfig(lora=LoraConfig(language=AdapterConfig(rank=4)))
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
    (ScheduleConfig(), {"warmup": -0.1}, "warmup is a part of the run's steps, in [0, 1); got -0.1"),
    (ScheduleConfig(), {"warmup": 1.0}, "warmup is a part of the run's steps, in [0, 1); got 1.0"),
    (
        CameraAugmentation(),
        {"crop": 0.0},
        "crop must lie in (0, 1], rotation in [0, 180] degrees, probability in [0, 1]",
    ),
    (CameraAugmentation(), {"rotation": 181.0}, "probability in [0, 1]; got 1.0, 181.0 and 0.5"),
    (CameraAugmentation(), {"probability": 1.5}, "got 1.0, 0.0 and 1.5"),
    (CameraAugmentation(), {"hue": -0.1}, "hue must lie in [0, 1]; got -0.1"),
    (AdapterConfig(), {"rank": -1}, "rank must not be negative and alpha above 0; got -1 and 16.0"),
    (AdapterConfig(), {"alpha": 0.0}, "rank must not be negative and alpha above 0; got 0 and 0.0"),
    (DistributedConfig(), {"process_id": 1}, "distributed.coordinator, num_processes and process_id belong together"),
    (
        DistributedConfig(),
        {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
        "distributed.process_id must lie in [0, 2); got 2 of 2 processes",
    ),
    (DistributedConfig(), {"heartbeat_timeout_s": 1}, "distributed.heartbeat_timeout_s must be at least 10; got 1"),
    (
        ScheduleConfig(),
        {"final_lr": 1.0},
        "0 <= final_lr <= peak_lr must hold, with peak_lr above 0; got 1.0 and 2.5e-05",
    ),
    (ScheduleConfig(), {"peak_lr": 0.0, "final_lr": 0.0}, "with peak_lr above 0"),
    (OptimizerConfig(), {"eps": NAN}, "eps and clip_norm must be above 0 and weight_decay not negative; got nan"),
    (ScheduleConfig(), {"final_lr": NAN}, "0 <= final_lr <= peak_lr must hold, with peak_lr above 0; got nan"),
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
    (TrainConfig(), {"microbatches": 0}, "microbatches must be at least 1; got 0"),
    *[
        (TrainConfig(), {name: 0}, f"{name} must be above 0; got 0")
        for name in ("validation_samples", "max_nonfinite_steps", "hang_timeout_s")
    ],
    (TrainConfig(), {"validation_interval": -1}, "validation_interval must not be negative; got -1"),
    (TrainConfig(), {"freeze": ("vision", "vision")}, "freeze must name each group once; got ('vision', 'vision')"),
    (TrainConfig(), {"freeze": ROLES}, "freeze names every group, so nothing would be trained"),
    (
        TrainConfig(),
        {"freeze": ("action_expert", "projections"), "train_expert_only": True},
        "freeze names every group, so nothing would be trained",
    ),
    (TrainConfig(), {"model": ADAPTED}, "model.lora adapts language, which is trained itself: add language to freeze"),
    (
        TrainConfig(),
        {"model": ADAPTED, "freeze": ("language",), "ema_decay": 0.9},
        "model.lora and ema_decay exclude each other",
    ),
    (CheckpointConfig(), {"keep_best": -1}, "keep_best must not be negative and timeout_s above 0; got -1 and 3600.0"),
    (CheckpointConfig(), {"timeout_s": 0.0}, "keep_best must not be negative and timeout_s above 0; got 1 and 0.0"),
    (
        CheckpointConfig(),
        {"best_metric": "loss"},
        "best_metric must be one of validation/flow_loss, validation/base, validation/torso, validation/left_arm, "
        "validation/right_arm; got 'loss'",
    ),
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
        ScheduleConfig(warmup=0.0, peak_lr=1.0, final_lr=0.0),
        CheckpointConfig(save_every=1, keep_every=None),
        TrainConfig(num_steps=1, batch_size=1, freeze=ROLES, model=ADAPTED),
    ],
    ids=lambda config: type(config).__name__,
)
def test_what_is_just_possible_is_accepted(config):
    assert dataclasses.replace(config) == config


def test_frozen_groups_come_in_one_order_from_both_fields():
    config = TrainConfig(freeze=("projections", "language"), train_expert_only=True)
    assert config.frozen == ("vision", "language", "projections")
    assert TrainConfig().frozen == ()
    assert ADAPTED.lora.roles == ("language",)
