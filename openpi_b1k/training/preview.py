"""A picture of the first samples of a batch: what the model is shown, before and after augmentation, and is to do.

One row a sample: its prompt, each camera's image with the varied one below it, and the action chunk field by field.
"""

import dataclasses
import pathlib
import textwrap
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.augment import augment
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.robots.layout import Robot
from openpi_b1k.training.state import augmentation_key
from openpi_b1k.typing import Array, PyTree

FILE = "first_batch.png"
MAX_SAMPLES = 4
LINE_LENGTH = 180
"""Characters of a prompt's line."""
CELL_INCHES = 1.9
PROMPT_INCHES = 0.8
DPI = 100
CAPTION = "lines: actions over the chunk's steps; dots: state; both normalised"
NORMALIZED_RANGE = (-1.1, 1.1)


def write_preview(
    path: pathlib.Path,
    batch: Batch,
    augmented: Observation,
    robot: Robot,
    decode: Callable[[list[int]], str],
) -> pathlib.Path:
    """Writes a PNG of the first samples of a batch, at most MAX_SAMPLES of this process's, and returns its path.

    State and actions are shown as the model sees them, normalised; steps that do not count in the loss are left out.

    Args:
        path: of the file; replaced if it exists.
        batch: as it comes from the loader.
        augmented: the observation of at least the same first rows, as `augmented_rows` gives it.
        robot: whose fields state and actions are made of.
        decode: from token ids without padding to text.
    """
    rows = first_rows(batch, MAX_SAMPLES)
    after = {name: _first_rows(images, MAX_SAMPLES) for name, images in augmented.images.items()}
    num_samples, num_columns = len(rows.actions), len(after) + _field_columns(robot)
    figure = Figure(figsize=(CELL_INCHES * num_columns, (2 * CELL_INCHES + PROMPT_INCHES) * num_samples), dpi=DPI)
    FigureCanvasAgg(figure)
    for index, part in enumerate(figure.subfigures(num_samples, 1, squeeze=False)[:, 0]):
        sample, varied = jax.tree.map(lambda array, index=index: array[index], (rows, after))
        _draw_sample(part, sample, varied, robot, decode)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def augmented_rows(batch: Batch, config: TrainConfig, completed_steps: int) -> Observation:
    """Returns the first rows of a batch of this process with the very images that the model sees in its step.

    Args:
        batch: of the step after `completed_steps`.
        config: of the run.
        completed_steps: steps before this one.
    """
    keys = jax.random.split(augmentation_key(config.seed, jnp.int32(completed_steps)), batch.actions.shape[0])
    start = _shards(batch.actions)[0][0]
    rows = first_rows(batch, MAX_SAMPLES)
    keys = keys[start : start + len(rows.actions)]
    return _augment(rows.observation, keys, config.augmentation)


_augment = jax.jit(augment, static_argnums=2)


def first_rows(batch: Batch, count: int) -> Batch:
    """Returns at most `count` rows of a batch as NumPy arrays: the first that lie on devices of this process."""
    return jax.tree.map(lambda array: _first_rows(array, count), batch)


def _first_rows(array: Array | np.ndarray, count: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    for _, rows in _shards(array):
        parts.append(np.asarray(rows[: count - sum(map(len, parts))]))
        if sum(map(len, parts)) == count:
            break
    return np.concatenate(parts)


def _shards(array: Array | np.ndarray) -> list[tuple[int, PyTree]]:
    """Returns the pieces of an array that this process holds, each with the number of its first row, in order."""
    if not isinstance(array, jax.Array):
        return [(0, array)]
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return sorted(pieces.items())


def _field_columns(robot: Robot) -> int:
    return -(-len(robot.action.fields) // 2)


def _draw_sample(
    figure: SubFigure, sample: Batch, varied: dict[str, np.ndarray], robot: Robot, decode: Callable[[list[int]], str]
) -> None:
    """Draws one row: `sample` and the `varied` images are without a batch axis."""
    observation = sample.observation
    text = decode(np.asarray(observation.prompt_tokens)[np.asarray(observation.prompt_mask)].tolist())
    lines = textwrap.wrap(text, LINE_LENGTH, max_lines=3) or [""]
    # A prompt may hold any character, so $ must not begin a formula.
    figure.text(0.01, 0.99, "\n".join(lines), va="top", fontsize=8, family="monospace", parse_math=False)
    top = 1 - PROMPT_INCHES / (2 * CELL_INCHES + PROMPT_INCHES)
    grid = figure.add_gridspec(
        2, len(varied) + _field_columns(robot), left=0.01, right=0.99, top=top, bottom=0.07, wspace=0.25, hspace=0.35
    )
    for column, name in enumerate(sorted(varied, key=list(observation.images).index)):
        is_there = bool(observation.image_masks[name])
        _draw_image(figure.add_subplot(grid[0, column]), name if is_there else f"{name} (absent)", observation, name)
        after = dataclasses.replace(observation, images=varied)
        _draw_image(figure.add_subplot(grid[1, column]), "augmented", after, name)
    figure.text(0.99, top + 0.06, CAPTION, ha="right", fontsize=7)
    for index, name in enumerate(robot.action.names):
        row, column = divmod(index, _field_columns(robot))
        _draw_field(figure.add_subplot(grid[row, len(varied) + column]), name, sample, robot)


def _draw_image(axes: Axes, title: str, observation: Observation, name: str) -> None:
    axes.imshow(np.asarray(observation.images[name]))
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _draw_field(axes: Axes, name: str, sample: Batch, robot: Robot) -> None:
    """Draws a line for each entry of an action field over the chunk's steps, and its state as dots before them."""
    entries = robot.action.slice(name)
    actions = np.where(sample.action_mask[:, entries], sample.actions[:, entries], np.nan)
    lines = axes.plot(actions, linewidth=0.9)
    if name in robot.state.names:
        state = np.asarray(sample.observation.state)[robot.state.slice(name)]
        for line, value in zip(lines, state, strict=True):
            axes.plot([-1], [value], marker="o", markersize=3, color=line.get_color())
    axes.set_title(name, fontsize=8, parse_math=False)
    axes.set_xlim(-2, len(actions))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, NORMALIZED_RANGE[0]), max(high, NORMALIZED_RANGE[1]))
    axes.tick_params(labelsize=6)
