"""The one call that turns a config into samples, statistics and the pipeline between them."""

import dataclasses
import logging
import pathlib

from openpi_b1k import paths
from openpi_b1k.config.data import DataConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data import norm_stats, random_samples
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.batches import Dataset
from openpi_b1k.data.formats import open_index, proprio_layout
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.base import Transform
from openpi_b1k.transforms.normalize import NormStats, near_constant
from openpi_b1k.transforms.pipeline import input_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run trains on, and what a checkpoint keeps of it."""

    dataset: Dataset
    pipeline: Transform
    """Raw sample -> model sample."""
    norm_stats: NormStats
    tokenizer: Tokenizer
    prompts: dict[str, str]
    """Task name -> prompt; the commonest where the data word one task in several ways."""
    fingerprint: str
    """Of the data set's meta files and chosen episodes."""
    robot: Robot


def open_training_data(config: TrainConfig) -> TrainingData:
    """Returns the data of a training run, checked: whatever can be refused before the first step is refused here.

    A config with source `sample` must have `data.root` set; whoever made the demonstrations knows it.

    Raises:
        FileNotFoundError: data, or the tokenizer, are not there.
        ValueError: data, config, robot, statistics and tokenizer do not fit together.
    """
    robot = r1pro(config.data.transforms.state_layout)
    if config.data.source != "random":
        data_root(config.data)  # missing data are refused before a tokenizer is downloaded for them
    tokenizer = Tokenizer(paths.fetch(config.data.transforms.tokenizer))
    read = _open_random if config.data.source == "random" else _open_demonstrations
    dataset, stats, prompts, fingerprint = read(config, robot)
    check_prompts(tokenizer, prompts, robot, config.model.max_prompt_tokens)
    guarded = near_constant(stats, robot, config.data.transforms.normalization)
    if guarded:
        logger.info("nearly constant, so not divided by their spread: %s", ", ".join(guarded))
    return TrainingData(
        dataset=dataset,
        pipeline=input_pipeline(config.data.transforms, config.model, robot, stats, tokenizer),
        norm_stats=stats,
        tokenizer=tokenizer,
        prompts={task: wordings[0] for task, wordings in prompts.items()},
        fingerprint=fingerprint,
        robot=robot,
    )


def data_root(config: DataConfig) -> pathlib.Path:
    """Returns the directory of the config's data set.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the source is `sample`, and nobody has said where its demonstrations were made.
    """
    if config.source == "sample" and config.root is None:
        raise ValueError("data.root must be set for source 'sample': make the data with `sample.demos.ensure(config)`")
    return paths.data_root(config.root, config.generation)


def open_demonstrations(config: TrainConfig, robot: Robot) -> B1kDataset:
    """Returns the demonstrations on disk that the config chooses.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they do not fit the config.
    """
    index = open_index(data_root(config.data), config.data)
    horizon, size = config.model.action_horizon, config.model.image_size
    return B1kDataset(index, robot.action.size, horizon, size, config.data.frame_cache_gib)


def check_prompts(tokenizer: Tokenizer, prompts: dict[str, tuple[str, ...]], robot: Robot, max_tokens: int) -> None:
    """Refuses prompts that are or could become too long.

    Raises:
        ValueError: names every such task.
    """
    named = {
        f"{task} (wording {i + 1})" if i else task: wording
        for task, wordings in prompts.items()
        for i, wording in enumerate(wordings)
    }
    tokenizer.check_prompts(named, robot.state.size, max_tokens)


_Opened = tuple[Dataset, NormStats, dict[str, tuple[str, ...]], str]


def _open_demonstrations(config: TrainConfig, robot: Robot) -> _Opened:
    dataset = open_demonstrations(config, robot)
    stats, _ = norm_stats.load_or_compute(
        dataset.index, dataset.columns, config.data.transforms, robot, config.model.action_horizon
    )
    return dataset, stats, dataset.index.prompts_by_task(), dataset.index.fingerprint


def _open_random(config: TrainConfig, robot: Robot) -> _Opened:
    dataset = random_samples.RandomDataset(
        robot=robot,
        proprio_size=proprio_layout(config.data.generation).size,
        action_horizon=config.model.action_horizon,
        cameras=config.data.transforms.cameras,
    )
    prompts = {random_samples.TASK: (random_samples.PROMPT,)}
    return dataset, random_samples.random_norm_stats(robot), prompts, "random"
