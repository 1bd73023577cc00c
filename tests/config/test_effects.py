"""Every field of a config has an effect: changing it changes something that can be seen from outside."""

import dataclasses
import pathlib
import shutil

import pytest

from configs import debug
from openpi_b1k import paths
from openpi_b1k.config.data import CAMERAS, SAMPLE_TOKENIZER, SourceConfig
from openpi_b1k.config.optimization import CROP_AND_COLOURS, ROLES
from openpi_b1k.config.serialize import flatten
from openpi_b1k.config.train import DistributedConfig, TrainConfig
from tests.config import views

SAMPLE = {"data.source": "sample", "data.sample_demos": 8}
READ = {**SAMPLE, "model.max_prompt_tokens": 192}  # sentences are longer than the random data's
RECORDED = {"data.source": "b1k", "data.root": str(pathlib.Path(__file__).parents[1] / "data/b1k_2025")}
LONG_GOP = {**RECORDED, "model.max_prompt_tokens": 192}
NUMBERS = SourceConfig(name="more", source="random", transforms=debug.CONFIG.data.transforms)
MIXED = {"data.extra_sources": (NUMBERS,)}
SAME_AGAIN = {
    **READ,
    "data.extra_sources": (
        dataclasses.replace(NUMBERS, source="sample", sample_demos=8, tasks=("press_red_button_with_left_gripper",)),
    ),
}
DEPTH = {"data.modalities": ("rgb", "depth"), "model.point_clouds": True, "data.transforms.depth_stride": 9}
EXPERTS = ("vlm", "action_expert")
VARIATION = {
    "crop": 0.8,
    "rotation": 9.0,
    "probability": 0.9,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.2,
}
VARIED = {f"augmentation.{camera}": CROP_AND_COLOURS for camera in CAMERAS}
TWO = {"distributed": DistributedConfig("here:1", num_processes=2, process_id=1)}


def shared(name, value):
    """Returns the change of a size that VLM and action expert must share."""
    return {f"model.{expert}.{name}": value for expert in EXPERTS}


# field: (what shows it, the change, and what else has to be set before and after). A change that needs company, because
# other fields must agree with it, is a dict.
EFFECTS = {
    "name": (views.run_directory, "other", {"exp_name": "new"}),
    "exp_name": (views.run_directory, "other", {"exp_name": "new"}),
    "checkpoint_dir": (views.run_directory, "elsewhere", {"exp_name": "new"}),
    "resume": (views.run_directory, True, {"exp_name": "old"}),
    "overwrite": (views.run_directory, True, {"exp_name": "old"}),
    "weights": (views.initial_weights, "/some/params", {}),
    "norm_stats": (views.statistics, "/nowhere/norm_stats.json", {}),
    "weights_kind": (views.initial_weights, "live", {"weights": "/some/params"}),
    **{
        f"model.vision.{name}": (views.vision, value, {})
        for name, value in {"width": 64, "depth": 2, "mlp_dim": 32, "num_heads": 4, "patch_size": 7}.items()
    },
    **{
        f"model.{expert}.{name}": (getattr(views, expert), {**shared(name, value), **company}, {})
        for expert in EXPERTS
        for name, value, company in [
            ("depth", 3, {}),
            ("num_heads", 4, {}),
            ("num_kv_heads", 2, {}),
            ("head_dim", 8, {}),
        ]
    },
    **{
        f"model.{expert}.{name}": (getattr(views, expert), 48, {})
        for expert in EXPERTS
        for name in ("width", "mlp_dim")
    },
    "model.kind": (views.abstract_params, "pi0", {}),
    "model.vocab_size": (views.vlm, 2048, {}),
    "model.image_size": (views.vision, 42, {}),
    "model.action_dim": (views.suffix, 40, {}),
    "model.action_horizon": (views.batch, 5, {}),
    "model.point_clouds": (views.abstract_params, True, {}),
    "model.max_prompt_tokens": (views.batch, 200, {}),
    "model.num_flow_steps": (views.sampling_program, 3, {}),
    "model.dtype": (views.loss_program, "bfloat16", {}),
    "model.remat": (views.loss_program, "full", {}),
    "data.name": (views.log_of_data, "numbers", {}),
    "data.source": (views.batch_or_refusal, "b1k", {}),
    "data.generation": (views.batch, "2026", {}),
    "data.root": (views.root, "/elsewhere", {"data.source": "b1k"}),
    "data.tasks": (views.demonstrations, ("press_red_button_with_left_gripper",), SAMPLE),
    "data.episodes": (views.demonstrations, (0,), SAMPLE),
    "data.validation_episodes": (views.demonstrations, (0,), SAMPLE),
    "data.cameras": (views.batch, ("head", "left_wrist"), {}),
    "data.modalities": (views.demonstrations, ("rgb", "depth"), SAMPLE),
    "data.prompt_level": (views.demonstrations, 1, SAMPLE),
    "data.skill_weights": (views.demonstrations, (("press", 0.5),), SAMPLE),
    "data.trim_idle": (views.demonstrations, False, RECORDED),
    "data.weight": (views.sequence, 3.0, MIXED),
    "data.extra_sources": (views.sequence, MIXED["data.extra_sources"], {}),
    "data.norm_stats_of": (views.statistics, "own", SAME_AGAIN),
    "data.order": (views.sequence, "frames", LONG_GOP),
    "data.window_gb": (views.log_of_data, 1.0, {**LONG_GOP, "data.window_gb": 100.0}),
    "data.on_bad_sample": (views.skipping, "skip", {}),
    "data.transforms.depth_stride": (views.batch_or_refusal, 8, DEPTH),
    "data.transforms.per_step_norm": (views.statistics, True, READ),
    "data.transforms.state_layout": (views.batch, "grippers_last", {}),
    "data.transforms.delta_fields": (views.batch, ("torso",), {}),
    "data.transforms.normalization": (views.batch, "zscore", {}),
    "data.transforms.clip_normalized": (views.batch, 1.25, {}),
    "data.transforms.mask_padding": (views.batch, False, {}),
    "data.transforms.tokenizer": (views.batch_or_refusal, "/nowhere/tokenizer.model", {}),
    "data.num_workers": (views.workers, 2, {"data.num_workers": 1}),
    "data.prefetch": (views.workers, 5, {"data.num_workers": 1}),
    "data.frame_cache_gib": (views.sequence, 0.1, LONG_GOP),
    "data.sample_demos": (views.made_demonstrations, 9, SAMPLE),
    "optimizer.b1": (views.updates, 0.5, {}),
    "optimizer.b2": (views.updates, 0.5, {}),
    "optimizer.eps": (views.updates, 0.1, {}),
    "optimizer.weight_decay": (views.updates, 0.1, {}),
    "optimizer.clip_norm": (views.updates, 3.0, {}),
    "optimizer.first_moment": (views.plan, "bfloat16", {}),
    "schedule.warmup": (views.updates, 0.15, {}),
    "schedule.peak_lr": (views.updates, 1e-2, {}),
    "schedule.final_lr": (views.updates, 1e-5, {}),
    "checkpoints.save_every": (views.course, 2, {}),
    "checkpoints.keep_last": (views.course, 2, {}),
    "checkpoints.keep_every": (views.course, 10, {}),
    "checkpoints.keep_best": (views.course, 2, {}),
    "checkpoints.best_metric": (views.course, "validation/torso", {}),
    "checkpoints.timeout_s": (views.course, 1.0, {}),
    **{
        f"augmentation.{camera}.{name}": (views.variation_program, value, VARIED)
        for camera in CAMERAS
        for name, value in VARIATION.items()
    },
    "distributed.coordinator": (views.connection, "other:1", TWO),
    "distributed.num_processes": (views.connection, 3, TWO),
    "distributed.process_id": (views.connection, 0, TWO),
    "distributed.heartbeat_timeout_s": (views.connection, 20, TWO),
    "freeze": (views.plan, ("vision",), {}),
    "train_expert_only": (views.plan, True, {}),
    **{
        f"model.lora.{role}.rank": (views.plan, 3, {"freeze": ROLES[:3], f"model.lora.{role}.rank": 2})
        for role in ROLES[:3]
    },
    **{
        f"model.lora.{role}.alpha": (views.loss_program, 3.0, {"freeze": ROLES[:3], f"model.lora.{role}.rank": 2})
        for role in ROLES[:3]
    },
    "batch_size": (views.batch, 4, {}),
    "num_steps": (views.course, 21, {}),
    "flow_samples": (views.loss_program, 2, {}),
    "ema_decay": (views.updates, 0.15, {"ema_decay": 0.1}),
    "fsdp": (views.plan, 4, {}),
    "microbatches": (views.update_program, 2, {}),
    "ignore_memory_plan": (views.refusal, True, {}),
    "deterministic": (views.compiler_flags, True, {}),
    "validation_interval": (views.course, 3, {}),
    "validation_samples": (views.held_out, 3, READ),
    "max_nonfinite_steps": (views.patience, 4, {}),
    "hang_timeout_s": (views.course, 7.0, {}),
    "profile": (views.course, True, {}),
    "tensorboard": (views.tracking, True, {}),
    "seed": (views.batch, 1, {}),
    "log_every": (views.course, 3, {}),
    "wandb": (views.tracking, "offline", {}),
    "wandb_project": (views.tracking, "mine", {"wandb": "offline"}),
    "rollouts": (views.rollouts, 7, SAMPLE),
}

# Fields that cannot be shown cheaply: name -> reason.
UNSHOWN: dict[str, str] = {}

MORE = [
    ("ema_decay", views.plan, 0.9, {}),
    ("flow_samples", views.updates, 2, {}),
    ("seed", views.updates, 1, {}),
    ("num_steps", views.updates, 200, {}),
    ("model.action_horizon", views.loss_program, 5, {}),
    ("model.dtype", views.sampling_program, "bfloat16", {}),
    ("data.generation", views.root, "2026", {"data.source": "b1k"}),
    ("data.generation", views.made_demonstrations, "2026", SAMPLE),
    ("data.source", views.rollouts, {"data.source": "sample", "data.sample_demos": 8, "rollouts": 3}, {}),
]


def change(config, changes):
    """Returns the config with fields changed by their dotted names, those of one dataclass together."""
    here = {name: value for name, value in changes.items() if "." not in name}
    groups = {}
    for name, value in changes.items():
        if "." in name:
            group, rest = name.split(".", 1)
            groups.setdefault(group, {})[rest] = value
    parts = {group: change(getattr(config, group), inner) for group, inner in groups.items()}
    return dataclasses.replace(config, **here, **parts)


def test_every_field_is_shown_or_listed_with_a_reason():
    fields = set(flatten(TrainConfig()))
    assert fields == EFFECTS.keys() | UNSHOWN.keys()
    assert not EFFECTS.keys() & UNSHOWN.keys()


@pytest.fixture(scope="module")
def look():
    """Returns a function from a view and a config to what it shows; it looks once, and the first time twice."""
    seen = {}

    def look(view, config):
        if (view, config) not in seen:
            is_new = view not in {known for known, _ in seen}
            seen[view, config] = view(config)
            assert not is_new or view(config) == seen[view, config]  # or every change would seem to show
        return seen[view, config]

    return look


@pytest.mark.parametrize(
    ("field", "effect"),
    [*EFFECTS.items(), *((field, effect) for field, *effect in MORE)],
    ids=[*EFFECTS, *(f"{field}-{view.__name__}" for field, view, *_ in MORE)],
)
def test_a_change_shows(field, effect, look, sample_root):
    view, value, company = effect
    base = change(dataclasses.replace(debug.CONFIG, name="debug"), company)
    if base.data.source == "sample" and view not in (views.made_demonstrations, views.rollouts):
        sources = [
            dataclasses.replace(each, root=str(sample_root(each.generation, "depth"))) for each in base.data.sources
        ]
        base = change(base, {"data": dataclasses.replace(sources[0], extra_sources=tuple(sources[1:]))})
    changed = change(base, value if isinstance(value, dict) else {field: value})
    assert flatten(changed).get(field) != flatten(base).get(field)  # a mixture's parts are fields of their own
    assert look(view, changed) != look(view, base)


def test_the_tokenizer_is_the_one_at_its_path(tmp_path):
    copy = shutil.copy(paths.fetch(SAMPLE_TOKENIZER), tmp_path / "mine.model")
    config = change(debug.CONFIG, {"data.transforms.tokenizer": str(copy)})
    assert views.batch(config) == views.batch(debug.CONFIG)
    pathlib.Path(copy).unlink()
    with pytest.raises(FileNotFoundError, match=r"mine\.model"):
        views.batch(config)
