"""From the description of a data set to its samples: index, columns, annotations, window, split, spans, frames."""

import bisect
import dataclasses
import logging
import pathlib

import numpy as np

from openpi_b1k import paths
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data import random_samples
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.frames.runs import WindowSize
from openpi_b1k.data.frames.video import key_frame_distance
from openpi_b1k.data.index import revision
from openpi_b1k.data.index.annotations import Annotations, read_annotations
from openpi_b1k.data.index.episodes import EpisodeIndex
from openpi_b1k.data.index.formats import open_index, proprio_layout
from openpi_b1k.data.index.segments import Segments
from openpi_b1k.data.index.selection import split
from openpi_b1k.data.index.trimming import trim
from openpi_b1k.data.mixture import Dataset
from openpi_b1k.data.order.lanes import LANES, LaneOrder
from openpi_b1k.data.order.permutation import derive_seed
from openpi_b1k.data.order.slots import RUN, Mixing
from openpi_b1k.data.order.spans import SpanTable, span_table
from openpi_b1k.data.prompts import open_prompts
from openpi_b1k.robots.layout import Robot
from openpi_b1k.robots.r1pro import r1pro

logger = logging.getLogger(__name__)

FRAMES_SPAN = 2048
"""Longest piece of an episode in mode frames: sixteen of them are mixed in a lane, of which 64 go on at a time."""
DECODED_SPAN = 250
"""About the length of a piece in mode spans: the GOP of the 2025 release."""
LONG_GOP = 32
"""Frames between key frames above which frames are not drawn independently, unless the config says so."""
SPARE_SPANS = 16
"""Of so many spans, there is room for the decoders of one more, and of one at least: some spans end between key frames,
and their decoders wait until it shows that nobody comes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """The episodes of a source that are trained on."""

    index: EpisodeIndex
    validation: EpisodeIndex
    """Those that are held out."""
    columns: Columns
    annotations: Annotations
    """Of these episodes and of those that are held out."""
    skills: Segments


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedSource:
    """A data set that is ready to be drawn from."""

    config: SourceConfig
    robot: Robot
    dataset: Dataset
    order: LaneOrder
    prompts: dict[str, tuple[str, ...]]
    """Task name -> its sentences, the commonest first."""
    wordings: dict[str, tuple[str, ...]]
    """Task name -> all that the policy is told in it: at prompt level 0 the sentences."""
    fingerprint: str
    """Of meta files, chosen episodes and their windows."""
    revision: str
    """Where the copy came from, as far as it tells."""
    demonstrations: Demonstrations | None
    """None for random numbers."""


def data_root(config: SourceConfig) -> pathlib.Path:
    """Returns the directory of the config's data set.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the source is `sample`, and nobody has said where its demonstrations were made.
    """
    if config.source == "sample" and config.root is None:
        raise ValueError("data.root must be set for source 'sample': make the data with `sample.demos.ensure(config)`")
    return paths.data_root(config.root, config.generation)


def open_source(source: SourceConfig, config: TrainConfig, num_readers: int) -> OpenedSource:
    """Returns the samples of one of the config's sources, and logs what they are.

    Args:
        source: one of the config's.
        config: of the run.
        num_readers: processes of all machines that read samples; they share the lanes and the window's memory.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: they do not fit the config.
    """
    robot = r1pro(source.transforms.state_layout)
    number = [each.name for each in config.data.sources].index(source.name)
    seed = derive_seed(config.seed, number)
    if source.source == "random":
        return _open_random(source, config, robot, seed)
    return _open_demonstrations(source, config, robot, seed, num_readers)


def open_demonstrations(source: SourceConfig, robot: Robot) -> Demonstrations:
    """Returns the demonstrations on disk that a source chooses: trimmed, split, and their columns converted.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they do not fit the source, or are of an outdated revision.
    """
    index = open_index(data_root(source), source)
    columns = Columns(index, robot)
    columns.ensure()
    revision.refuse_outdated(index, columns)
    annotations = read_annotations(index)
    if source.trim_idle:
        index, _ = trim(index, annotations, columns)
    training, validation = split(index, source)
    logger.info(
        "source %s: %d episodes with %d frames of %d tasks; held out %d episodes with %d frames",
        *(source.name, len(training.numbers), len(training), len(np.unique(training.tasks))),
        *(len(validation.numbers), len(validation)),
    )
    return Demonstrations(training, validation, Columns(training, robot), annotations, annotations.skills.of(training))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a source's episodes are cut and mixed."""

    mixing: Mixing
    longest: int
    """Frames of a span."""
    window: WindowSize
    """Of each process that reads; of no size in mode frames."""


def choose_plan(source: SourceConfig, config: TrainConfig, index: EpisodeIndex, num_readers: int) -> Plan:
    """Returns how the lanes mix an index's spans.

    In mode spans the window's memory decides how many spans are open, one in each lane at least; lanes differ by one at
    most. Sources share the window evenly.
    """
    data, distance = config.data, key_frame_distance(index)
    if data.order == "frames" or (data.order == "auto" and (distance <= LONG_GOP or data.frame_cache_gib)):
        logger.info("source %s: frames are drawn independently; key frames every %d frames", source.name, distance)
        return Plan(Mixing(), FRAMES_SPAN, WindowSize(0, 0))
    frames, most_bytes = EpisodeFrames(index, config.model.image_size), data.window_gb * 1e9 / len(data.sources)

    def nbytes(num_spans: int) -> float:
        size = _window_size(frames, num_spans, num_readers)
        return num_readers * (size.picture_bytes + size.num_readers / len(index.videos) * frames.span_bytes)

    more = range(LANES + 1, int(most_bytes / (frames.span_bytes + RUN * frames.sample_bytes)) + 1)
    num_spans = LANES + bisect.bisect_right(more, most_bytes, key=nbytes)
    logger.info(
        "source %s: spans between key frames (every %d frames) are decoded once, %d mixed at a time in %d lanes: at "
        "most %.1f GB (--data.window-gb)",
        *(source.name, distance, num_spans, LANES, nbytes(num_spans) / 1e9),
    )
    num_open, num_more = divmod(num_spans, LANES)
    longest = distance * max(1, round(DECODED_SPAN / distance))
    return Plan(
        Mixing(num_open, is_sequential=True, num_more=num_more), longest, _window_size(frames, num_spans, num_readers)
    )


def _window_size(frames: EpisodeFrames, num_spans: int, num_readers: int) -> WindowSize:
    """Returns the window of each reader, where the lanes of all have that many spans open.

    There is room for every span's whole run: of those at which a run of training begins, part is never asked for.
    """
    spans = -(-num_spans * -(-LANES // num_readers) // LANES)
    spare = max(1, spans // SPARE_SPANS)
    return WindowSize(spans * RUN * frames.sample_bytes, (spans + spare) * len(frames.index.videos))


def _open_demonstrations(
    source: SourceConfig, config: TrainConfig, robot: Robot, seed: int, num_readers: int
) -> OpenedSource:
    found = open_demonstrations(source, robot)
    index, model = found.index, config.model
    plan = choose_plan(source, config, index, num_readers)
    skills = found.skills if source.skill_weights else None
    mixing = plan.mixing
    spans = span_table(index, skills, dict(source.skill_weights), plan.longest, mixing.is_sequential, seed)
    prompts = open_prompts(index, source.prompt_level, found.annotations)
    cache_bytes = int(config.data.frame_cache_gib * 2**30 / len(config.data.sources))
    frames = EpisodeFrames(index, model.image_size, cache_bytes, plan.window)
    return OpenedSource(
        config=source,
        robot=robot,
        dataset=B1kDataset(index, found.columns, frames, found.skills, prompts, model.action_horizon),
        order=LaneOrder(spans, index.starts[:-1] - index.begins, mixing, seed),
        prompts=index.prompts_by_task(),
        wordings=prompts.wordings(),
        fingerprint=index.fingerprint,
        revision=str(revision.read_revision(index)),
        demonstrations=found,
    )


def _open_random(source: SourceConfig, config: TrainConfig, robot: Robot, seed: int) -> OpenedSource:
    dataset = random_samples.RandomDataset(
        robot=robot,
        proprio_size=proprio_layout(source.generation).size,
        action_horizon=config.model.action_horizon,
        cameras=source.cameras,
        modalities=source.modalities,
    )
    prompts = {random_samples.TASK: (random_samples.PROMPT,)}
    size = len(dataset)
    row, first, stop = np.array([0]), np.array([0]), np.array([size])
    spans = SpanTable(row=row, first=first, stop=stop, count=stop - first, pieces=None)
    return OpenedSource(
        config=source,
        robot=robot,
        dataset=dataset,
        order=LaneOrder(spans, np.zeros(1, np.int64), Mixing(), seed),
        prompts=prompts,
        wordings=prompts,
        fingerprint="random",
        revision="random",
        demonstrations=None,
    )
