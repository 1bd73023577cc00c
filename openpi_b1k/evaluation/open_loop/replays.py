"""Episodes gone through from end to end: what the policy would do along a demonstration, chunk after chunk."""

import dataclasses

import numpy as np

from openpi_b1k.evaluation.open_loop.looking import look
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames
from openpi_b1k.evaluation.run_report_data import Chart, Series, thinned
from openpi_b1k.robots.layout import Layout
from openpi_b1k.serving.policy import Policy

MAX_CHUNKS = 32
"""Of an episode. Where they do not cover it, they are spread evenly."""
MAX_IMAGES = 8
"""Of an episode, spread evenly."""


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One demonstration and what the policy makes of it; the robot always is where the demonstration has it."""

    prompt: str
    """At the first chunk."""
    episode: int
    first_frame: int
    """Of the window that is used."""
    true: np.ndarray
    """float32 [frames of the window, a]"""
    chunks: tuple[tuple[int, np.ndarray], ...]
    """(first frame, actions [at most ah, a]): those before the window's end."""
    images: tuple[tuple[int, np.ndarray], ...]
    """(frame, uint8 [h, w, 3]): some of what the model saw."""

    def charts(self, layout: Layout) -> list[Chart]:
        """Returns a chart for each field over the episode: each dim as demonstrated, and dashed the policy's chunks."""
        found = []
        for field in layout.fields:
            series = []
            for colour, dim in enumerate(range(*layout.slice(field.name).indices(layout.size))):
                true = [(float(self.first_frame + i), float(value)) for i, value in enumerate(self.true[:, dim])]
                series.append(Series(f"true {colour}", thinned(true), colour))
                for first, actions in self.chunks:
                    points = [(float(first + i), float(value)) for i, value in enumerate(actions[:, dim])]
                    series.append(Series(f"predicted {colour}", points, colour, is_dashed=True))
            unit = field.unit.removeprefix("1: ")
            found.append(Chart(f"{field.name}: {unit}", tuple(series), x_name="frame"))
        return found


def replay(policy: Policy, frames: ChosenFrames, row: int, batch_size: int) -> Replay:
    """Returns what a policy makes of one episode, a chunk for every `action_horizon` frames, at most MAX_CHUNKS.

    Args:
        policy: to look at.
        frames: of the data set.
        row: which of its episodes.
        batch_size: frames at a time.

    Raises:
        ValueError: a frame cannot be read, or the policy gives an action that is no number.
    """
    index, horizon = frames.index, policy.config.model.action_horizon
    first, stop = int(index.starts[row]), int(index.starts[row + 1])
    starts = np.arange(first, stop, horizon)
    starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), MAX_CHUNKS)).astype(int)]
    of_episode = dataclasses.replace(frames, numbers=starts, rows=np.full(len(starts), row))
    seen = list(look(policy, of_episode, batch_size))
    _, actions = frames.dataset.columns.episode(row)
    shown = np.linspace(0, len(seen) - 1, min(len(seen), MAX_IMAGES)).astype(int)
    begin, end = int(index.begins[row]), int(index.ends[row])
    return Replay(
        prompt=seen[0].sample["prompt"],
        episode=int(index.numbers[row]),
        first_frame=begin,
        true=np.asarray(actions[begin:end]),
        chunks=tuple((one.sample["frame"], one.chunk().predicted) for one in seen),
        images=tuple((seen[i].sample["frame"], seen[i].image) for i in shown.tolist()),
    )
