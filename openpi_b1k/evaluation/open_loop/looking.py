"""What a policy makes of frames of demonstrations, a batch at a time."""

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Iterator

import numpy as np

from openpi_b1k.evaluation.open_loop.samples import ChosenFrames
from openpi_b1k.evaluation.run_report_data import Chunk
from openpi_b1k.serving.policy import ModelSample, Policy
from openpi_b1k.transforms.base import Sample

logger = logging.getLogger(__name__)

MAX_THREADS = 8
"""That read and decode frames."""
LABELS = ("actions", "is_pad")
"""Fields of a training sample that a policy is not given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """A frame that was looked at."""

    sample: Sample
    """As training reads it."""
    last_action: np.ndarray | None
    inputs: ModelSample
    predicted: np.ndarray
    """[ah, a] in the robot's units."""

    @property
    def where(self) -> str:
        """Episode and frame."""
        return f"episode {self.sample['episode']}, frame {self.sample['frame']}"

    def chunk(self) -> Chunk:
        """Returns what a page shows of it, without actions past the episode's end."""
        is_inside = ~self.sample["is_pad"]
        return Chunk(
            true=self.sample["actions"][is_inside],
            predicted=self.predicted[is_inside],
            prompt=self.sample["prompt"],
            place=self.where,
            image=self.image,
        )

    @property
    def image(self) -> np.ndarray:
        """What the model sees, all images side by side: uint8 [h, images * w, 3]."""
        return np.concatenate(list(self.inputs["images"].values()), axis=1)


def look(policy: Policy, frames: ChosenFrames, batch_size: int) -> Iterator[Looked]:
    """Yields each chosen frame with the policy's chunk for it.

    Args:
        policy: to look at.
        frames: of demonstrations.
        batch_size: frames at a time; the last batch is filled up.

    Raises:
        ValueError: a frame cannot be read, or the policy gives an action that is no number.
    """
    places = range(len(frames.numbers))
    with concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for first in range(0, len(places), batch_size):
            read = list(pool.map(frames.read, places[first : first + batch_size]))
            observed = ({name: value for name, value in sample.items() if name not in LABELS} for sample, _ in read)
            inputs = list(pool.map(policy.prepare, observed))
            chunks = policy.predict([*inputs, *[inputs[-1]] * (batch_size - len(inputs))])
            for (sample, last_action), one, chunk in zip(read, inputs, chunks, strict=False):
                looked = Looked(sample, last_action, one, policy.finish(chunk, one))
                if not np.isfinite(looked.predicted).all():
                    raise ValueError(f"the policy gave an action that is no number at {looked.where}")
                yield looked
            logger.info("open loop: %d of %d frames", first + len(read), len(places))
