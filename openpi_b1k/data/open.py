"""The one call that turns a config into samples, statistics and the pipelines between them."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence

import jax

from openpi_b1k import paths
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data import norm_stats, random_samples
from openpi_b1k.data.mixture import Dataset, Mixture, Source
from openpi_b1k.data.sources import OpenedSource, data_root, open_source
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.base import Transform
from openpi_b1k.transforms.normalize import NormStats, near_constant
from openpi_b1k.transforms.pipeline import input_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run trains on, and what a checkpoint keeps of it: of a mixture, its main source's."""

    mixture: Mixture
    sources: tuple[OpenedSource, ...]
    """The main one first."""
    statistics: tuple[NormStats, ...]
    """What each source is normalised with."""
    tokenizer: Tokenizer
    prompts: dict[str, str]
    """Task name -> sentence; the commonest where a task has several."""
    fingerprint: str
    """Of the meta files, chosen episodes and windows of all sources."""
    robot: Robot

    @property
    def norm_stats(self) -> NormStats:
        """What the main source is normalised with."""
        return self.statistics[0]

    @property
    def dataset(self) -> Dataset:
        """The main source's raw samples by number."""
        return self.mixture.sources[0].dataset

    @property
    def pipeline(self) -> Transform:
        """The main source's raw sample -> model sample."""
        return self.mixture.sources[0].pipeline


def open_training_data(config: TrainConfig) -> TrainingData:
    """Returns the data of a training run, checked: whatever can be refused before the first step is refused here.

    A config with source `sample` must have `data.root` set; whoever made the demonstrations knows it.

    Raises:
        FileNotFoundError: data, or the tokenizer, are not there.
        ValueError: data, config, robot, statistics and tokenizer do not fit together.
    """
    for source in config.data.sources:
        if source.source != "random":
            data_root(source)  # missing data are refused before a tokenizer is downloaded for them
    tokenizers = [Tokenizer(paths.fetch(source.transforms.tokenizer)) for source in config.data.sources]
    num_readers = jax.process_count() * max(config.data.num_workers, 1)
    opened = [open_source(source, config, num_readers) for source in config.data.sources]
    for source, tokenizer in zip(opened, tokenizers, strict=True):
        check_prompts(tokenizer, source, config.model)
    statistics = _statistics(config, opened)
    drawn = []
    for source, stats, tokenizer in zip(opened, statistics, tokenizers, strict=True):
        pipeline = input_pipeline(source.config, config.model, source.robot, stats, tokenizer)
        drawn.append(Source(source.config.name, source.config.weight, source.dataset, pipeline, source.order))
    mixture = Mixture(drawn)
    mixture.log()
    return TrainingData(
        mixture=mixture,
        sources=tuple(opened),
        statistics=tuple(statistics),
        tokenizer=tokenizers[0],
        prompts={task: wordings[0] for task, wordings in opened[0].prompts.items()},
        fingerprint=combined_fingerprint([source.fingerprint for source in opened]),
        robot=opened[0].robot,
    )


def check_prompts(tokenizer: Tokenizer, source: OpenedSource, model: ModelConfig) -> None:
    """Refuses prompts that are or could become too long.

    Raises:
        ValueError: names every such task.
    """
    named = {
        f"{task} (wording {i + 1})" if i else task: wording
        for task, wordings in source.wordings.items()
        for i, wording in enumerate(wordings)
    }
    num_state = source.robot.state.size if model.state_in_prompt else None
    tokenizer.check_prompts(named, num_state, model.max_prompt_tokens)


def _statistics(config: TrainConfig, opened: Sequence[OpenedSource]) -> list[NormStats]:
    """Returns what each source is normalised with, and logs the entries that hardly vary."""
    given = [
        norm_stats.StatsSource(
            index=source.demonstrations.index,
            columns=source.demonstrations.columns,
            transforms=source.config.transforms,
            robot=source.robot,
            weight=source.config.weight,
        )
        for source in opened
        if source.demonstrations is not None
    ]
    chosen = iter(norm_stats.choose(config, given) if given else ())
    statistics = []
    for source in opened:
        if source.demonstrations is not None:
            stats = next(chosen)
        elif config.norm_stats == "data":
            stats = random_samples.random_norm_stats(source.robot)
        else:
            raise ValueError(f"random numbers have statistics of their own; got --norm-stats {config.norm_stats}")
        guarded = near_constant(stats, source.robot, source.config.transforms.normalization)
        if guarded:
            names = ", ".join(guarded)
            logger.info("source %s: nearly constant, so not divided by their spread: %s", source.config.name, names)
        statistics.append(stats)
    return statistics


def combined_fingerprint(fingerprints: Sequence[str]) -> str:
    """Returns the one fingerprint, or of several a hash that their order changes."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:32]
