"""One way to put recorded frames before a policy and to understand what it answers, and all ways one step from it."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from openpi_b1k.config.data import StateLayout, TransformConfig
from openpi_b1k.config.train import TrainConfig

OFFSETS = (-8, -4, -2, -1, 1, 2, 4, 8)
"""Frames, or environment steps, that images or actions may be out of step by."""
DELTA_FIELDS = ((), ("left_arm", "right_arm"), ("torso", "left_arm", "right_arm"))
DEFAULT_CLIP = 5.0
MAX_ROTATIONS = 3
"""Other tasks' prompts that are tried."""

Gripper = Literal["as given", "negated", "in [0, 1]", "swapped"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How frames and chunks are understood."""

    transforms: TransformConfig
    cameras: tuple[str, ...]
    """Whose image each of the config's cameras is given."""
    is_bgr: bool = False
    frame_offset: int = 0
    """The images are those of so many frames later."""
    statistics: Literal["checkpoint", "data"] = "checkpoint"
    prompt: Literal["served", "recorded"] = "served"
    rotation: int = 0
    """The prompt is that of the task so many places further in the table."""
    gripper: Gripper = "as given"
    action_lag: int = 0
    """A step of the chunk is what is done so many steps later."""
    kept_steps: int | None = None
    """Steps of the chunk that are believed; the last of them is repeated."""

    def steps(self, action_horizon: int) -> slice:
        """Returns the steps of a chunk at which the reading is compared: with a lag, what it says of the first half."""
        if not self.action_lag:
            return slice(None)
        return slice(max(self.action_lag, 0), action_horizon // 2)

    def seen(self) -> "Reading":
        """Returns the reading without what does not change the network's inputs."""
        transforms = dataclasses.replace(self.transforms, delta_fields=())
        return dataclasses.replace(self, transforms=transforms, gripper="as given", action_lag=0, kept_steps=None)


@dataclasses.dataclass(frozen=True)
class Change:
    """One assumption changed."""

    cause: str
    """A key of `findings.CAUSES`."""
    text: str
    reading: Reading


@dataclasses.dataclass(frozen=True)
class Alternatives:
    """What about a checkpoint and its data decides which changes can be tried."""

    config: TrainConfig
    num_prompts: int
    """Different prompts in the table."""
    differs_recorded: bool
    """Whether the data words a prompt differently from the table."""
    differs_statistics: bool
    """Whether the data's own statistics are others than the checkpoint's."""

    def changes(self, reading: Reading) -> Iterator[Change]:
        """Yields everything one step from a reading."""
        yield from self._images(reading)
        yield from self._words(reading)
        yield from self._numbers(reading)
        yield from self._chunks(reading)

    def _images(self, reading: Reading) -> Iterator[Change]:
        for order in itertools.permutations(reading.cameras):
            if order != reading.cameras:
                moved = ", ".join(
                    f"{there} for {name}" for name, there in zip(self.config.data.cameras, order, strict=True)
                )
                yield Change("cameras", f"images of {moved}", dataclasses.replace(reading, cameras=order))
        yield Change("colours", "red and blue exchanged", dataclasses.replace(reading, is_bgr=not reading.is_bgr))
        for offset in OFFSETS:
            text = f"images of {abs(offset)} frames {'later' if offset > 0 else 'earlier'}"
            yield Change("frames", text, dataclasses.replace(reading, frame_offset=offset))

    def _words(self, reading: Reading) -> Iterator[Change]:
        if self.differs_recorded and reading.prompt == "served":
            recorded = dataclasses.replace(reading, prompt="recorded", rotation=0)
            yield Change("prompts", "the prompts of the data", recorded)
        for rotation in range(1, min(self.num_prompts, MAX_ROTATIONS + 1)):
            other = dataclasses.replace(reading, rotation=rotation)
            yield Change("prompts", f"the prompts of other tasks, {rotation} further in the table", other)

    def _numbers(self, reading: Reading) -> Iterator[Change]:
        transforms = reading.transforms
        other: StateLayout = "like_action" if transforms.state_layout == "grippers_last" else "grippers_last"
        yield Change("state_layout", f"state_layout {other}", _with(reading, state_layout=other))
        kind = "zscore" if transforms.normalization == "quantile" else "quantile"
        yield Change("normalization", f"normalization {kind}", _with(reading, normalization=kind))
        if self.differs_statistics and reading.statistics == "checkpoint":
            own = dataclasses.replace(reading, statistics="data")
            yield Change("statistics", "norm stats computed on these data", own)
        if not self.config.model.state_in_prompt:  # bins of the prompt are limited whatever the clip
            clip = DEFAULT_CLIP if transforms.clip_normalized is None else None
            yield Change("clip", f"clip_normalized {clip}", _with(reading, clip_normalized=clip))

    def _chunks(self, reading: Reading) -> Iterator[Change]:
        for fields in DELTA_FIELDS:
            if set(fields) != set(reading.transforms.delta_fields):
                text = f"delta_fields {' '.join(fields) or 'none'}"
                yield Change("deltas", text, _with(reading, delta_fields=fields))
        grippers: tuple[Gripper, ...] = ("negated", "in [0, 1]", "swapped")
        for gripper in grippers:
            yield Change("grippers", f"gripper commands {gripper}", dataclasses.replace(reading, gripper=gripper))
        for lag in (lag for lag in OFFSETS if 4 * abs(lag) <= self.config.model.action_horizon):
            text = f"actions of {abs(lag)} steps {'later' if lag > 0 else 'earlier'}"
            yield Change("lag", text, dataclasses.replace(reading, action_lag=lag))
        for steps in range(1, self.config.model.action_horizon):
            text = f"the first {steps} steps of the chunk, the last of them repeated"
            yield Change("horizon", text, dataclasses.replace(reading, kept_steps=steps))


def as_served(config: TrainConfig) -> Reading:
    """Returns the reading that serving has."""
    return Reading(config.data.transforms, config.data.cameras)


def _with(reading: Reading, **changes: object) -> Reading:
    transforms = dataclasses.replace(reading.transforms, **changes)  # type: ignore[arg-type]  # fields of the config
    return dataclasses.replace(reading, transforms=transforms)
