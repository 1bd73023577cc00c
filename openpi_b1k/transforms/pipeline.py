"""The only place that orders transforms: for training, statistics, evaluation and serving alike.

raw sample -> B1kInputs -> delta -> normalise -> resize (-> point cloud, segmentation image) -> tokenise -> pad
-> model sample
model output -> cut to the robot -> unnormalise -> absolute -> actions the robot executes
"""

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA, SourceConfig, TransformConfig
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.actions import AbsoluteActions, DeltaActions
from openpi_b1k.transforms.b1k import B1kInputs, B1kOutputs, B1kStatistics
from openpi_b1k.transforms.base import Compose, Sample, Transform
from openpi_b1k.transforms.geometry import PointCloud
from openpi_b1k.transforms.images import ResizeImages
from openpi_b1k.transforms.normalize import Normalize, NormStats, Unnormalize
from openpi_b1k.transforms.padding import PadToModel
from openpi_b1k.transforms.segmentation import SegmentationImage
from openpi_b1k.transforms.tokenize import TokenizePrompt, TokenizePromptAndState, Tokenizer


def input_pipeline(
    source: SourceConfig, model: ModelConfig, robot: Robot, norm_stats: NormStats, tokenizer: Tokenizer
) -> Transform:
    """Returns what turns a raw sample into a model sample; without `actions`, as in serving, it makes no such fields.

    Raises:
        ValueError: model, robot, statistics and tokenizer do not fit together.
    """
    config = source.transforms
    _check_sizes(model, robot)
    _check_modalities(source, model)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{tokenizer.path} has {tokenizer.vocab_size} tokens, the model's vocabulary {model.vocab_size}; "
            f"raise it with --model.vocab-size {tokenizer.vocab_size}, or choose another --data.transforms.tokenizer"
        )
    tokenize = TokenizePromptAndState if model.state_in_prompt else TokenizePrompt
    return Compose(
        (
            B1kInputs(robot, source.cameras, source.modalities),
            DeltaActions(config.delta_fields, robot),
            Normalize(norm_stats.for_robot(robot), config.normalization, config.clip_normalized),
            ResizeImages(model.image_size),
            *_extra_inputs(source, model, robot),
            tokenize(tokenizer, model.max_prompt_tokens),
            PadToModel(model.action_dim, config.mask_padding),
        )
    )


def output_pipeline(config: TransformConfig, model: ModelConfig, robot: Robot, norm_stats: NormStats) -> Transform:
    """Returns what turns {"actions" [..., ah, ad], "raw_state" [..., s]} into {"actions" float32 [..., ah, a]}.

    Raises:
        ValueError: model, robot and statistics do not fit together.
    """
    _check_sizes(model, robot)
    return Compose(
        (
            B1kOutputs(robot),
            Unnormalize(norm_stats.for_robot(robot), config.normalization),
            AbsoluteActions(config.delta_fields, robot),
            _as_float32_actions,
        )
    )


def statistics_pipeline(config: TransformConfig, robot: Robot) -> Transform:
    """Returns what turns {"proprio" [..., p], "actions" [..., ah, a]} into the `state` and `actions` Normalize sees.

    It takes whole episodes at once, and no images.
    """
    return Compose((B1kStatistics(robot), DeltaActions(config.delta_fields, robot)))


def _extra_inputs(source: SourceConfig, model: ModelConfig, robot: Robot) -> tuple[Transform, ...]:
    """Returns what makes inputs of the modalities other than RGB."""
    transforms: list[Transform] = []
    if "depth" in source.modalities:
        transforms.append(PointCloud(robot.camera(EXTRA_CAMERA), source.transforms.depth_stride))
    if "segmentation" in source.modalities:
        transforms.append(SegmentationImage(model.image_size))
    return tuple(transforms)


def _as_float32_actions(sample: Sample) -> Sample:
    return {"actions": sample["actions"].astype(np.float32)}


def _check_sizes(model: ModelConfig, robot: Robot) -> None:
    needed = max(robot.state.size, robot.action.size)
    if model.action_dim < needed:
        raise ValueError(
            f"{robot.name} has {needed} entries in state or action, the model room for {model.action_dim}; "
            f"raise it with --model.action-dim {needed}"
        )


def _check_modalities(source: SourceConfig, model: ModelConfig) -> None:
    if ("depth" in source.modalities) == model.point_clouds:
        return
    if model.point_clouds:
        raise ValueError(
            f"the model sees point clouds, but depth is not read: source {source.name!r} has modalities "
            f"{' '.join(source.modalities)}; give --data.modalities rgb depth, or --model.no-point-clouds"
        )
    raise ValueError(
        f"source {source.name!r} reads depth, which the model does not see; give --model.point-clouds, or leave depth "
        "out of --data.modalities"
    )
