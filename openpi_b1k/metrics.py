"""What a run tells its user: log lines, a progress bar, metrics as JSON lines and, if asked for, elsewhere.

Nothing here knows jax: the caller says whether this process is the one that speaks.
"""

import dataclasses
import json
import logging
import pathlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

NOISY_LOGGERS = ("PIL", "absl", "orbax", "jax", "fsspec", "urllib3", "httpx", "wandb", "websockets")


class _BarFriendlyHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(*, is_main: bool) -> None:
    """Sends log lines to stderr: everything of ours from the main process, warnings only from the others."""
    handler = _BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, handlers=[handler], force=True)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


class MetricsWriter(Protocol):
    """Takes one line of metrics at a time, and now and then a picture."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` as measured when `step` updates were complete."""

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Shows the PNG file at `path` under `name`, where the writer has a place for pictures."""

    def close(self) -> None:
        """Leaves everything written."""


class JsonLines:
    """Appends to a file of one JSON object a line: `step` first, then the metrics."""

    def __init__(self, path: pathlib.Path, *, completed_steps: int) -> None:
        """Opens `path`, dropping what an earlier run wrote past the checkpoint that this one continues."""
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= completed_steps]
        rewritten = path.with_name(f"{path.name}.new")
        rewritten.write_text("".join(kept))
        rewritten.replace(path)  # at once, or a run killed here would lose its history
        self._file: TextIO = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and flushes it, so that a killed run keeps it."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Leaves the picture where it is, which is beside the file of lines."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
    """Returns the lines of `path`, less a last one that was cut off; none if there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class TensorBoard:
    """Writes event files to `<run>/tensorboard`, which `tensorboard --logdir` shows."""

    FLUSH_SECONDS = 10

    def __init__(self, directory: pathlib.Path, *, completed_steps: int) -> None:
        """Opens a new file; of a resumed run's older ones, what lies past its checkpoint is no longer shown."""
        import tensorboardX  # noqa: PLC0415 - rarely asked for

        self._writer = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=completed_steps + 1 if completed_steps else None,
            flush_secs=self.FLUSH_SECONDS,
            filename_suffix=f".{completed_steps}",  # besides the second of the start
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each value; a killed run loses those of the last FLUSH_SECONDS."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Adds the picture."""
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class Wandb:
    """Sends metrics to Weights & Biases; a resumed run continues its page."""

    def __init__(self, directory: pathlib.Path, config: Mapping[str, Any]) -> None:  # Any: values of any config field
        """Starts or continues the wandb run whose id lies in `directory`, as `config` says under wandb*.

        Raises:
            ConnectionError: wandb refuses, for want of a login for instance.
        """
        import wandb  # noqa: PLC0415 - takes a second and is rarely asked for

        self._image = wandb.Image
        id_file = directory / "wandb_id.txt"
        run_id = id_file.read_text() if id_file.is_file() else secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=config["wandb_project"],
                name=f"{directory.parent.name}/{directory.name}",
                id=run_id,
                resume="allow",
                mode=config["wandb"],
                dir=str(directory),
                config=dict(config),
            )
        except wandb.Error as error:
            raise ConnectionError(
                f"wandb does not start: {error}. Run `wandb login` or set WANDB_API_KEY; --wandb offline needs neither "
                "and leaves the run for `wandb sync`"
            ) from error
        id_file.write_text(run_id)
        # By wandb's own count of steps, lines that a resumed run writes again would be dropped.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values at `step`."""
        self._run.log({"step": step, **values})

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Uploads the picture."""
        self._run.log({"step": step, name: self._image(str(path))})

    def close(self) -> None:
        """Uploads what is left, or leaves it for `wandb sync`."""
        self._run.finish()


@dataclasses.dataclass(frozen=True)
class MetricsWriters:
    """Several writers as one; none of them on a process that does not speak."""

    writers: tuple[MetricsWriter, ...]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Passes the line to each writer."""
        for writer in self.writers:
            writer.write(step, values)

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Passes the picture to each writer."""
        for writer in self.writers:
            writer.write_image(step, name, path)

    def close(self) -> None:
        """Closes each writer."""
        for writer in self.writers:
            writer.close()


def open_writers(
    directory: pathlib.Path, config: Mapping[str, Any], *, is_main: bool, completed_steps: int
) -> MetricsWriters:
    """Returns the writers of one run: `metrics.jsonl` in its directory always, TensorBoard and wandb if asked for.

    Args:
        directory: the run's, named <recipe>/<run>.
        config: the run's fields by dotted name; `tensorboard` says whether, `wandb` is off, offline or online, and
            `wandb_project` the project.
        is_main: whether this process writes.
        completed_steps: of the checkpoint that a resumed run continues, else 0.

    Raises:
        ConnectionError: wandb is asked for and refuses.
    """
    if not is_main:
        return MetricsWriters(())
    directory.mkdir(parents=True, exist_ok=True)
    wandb = (Wandb(directory, config),) if config["wandb"] != "off" else ()  # first: it is the one that may refuse
    tensorboard = (TensorBoard(directory, completed_steps=completed_steps),) if config["tensorboard"] else ()
    json_lines = JsonLines(directory / "metrics.jsonl", completed_steps=completed_steps)
    return MetricsWriters((json_lines, *tensorboard, *wandb))


class ProgressBar:
    """A bar over the steps of a run, with the newest metrics behind it; silent where it is not the main process."""

    SECONDS_BETWEEN_VALUES = 1.0
    SHOWN: ClassVar = {
        "loss": "loss",
        "learning_rate": "lr",
        "samples_per_s": "samples/s",
        "mfu": "mfu",
        "data_wait": "data wait",
        "skipped_updates": "skipped",
    }

    def __init__(self, total: int, *, completed_steps: int, is_main: bool) -> None:
        """Shows a bar of `total` steps, of which `completed_steps` are done."""
        self._bar = tqdm(
            total=total,
            initial=completed_steps,
            unit="step",
            disable=not is_main,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        )
        self._shown_at = 0.0

    def advance(self, values: Callable[[], Mapping[str, float]]) -> None:
        """Counts one step; asks for new values when those shown are old enough to be replaced."""
        if not self._bar.disable and time.monotonic() - self._shown_at >= self.SECONDS_BETWEEN_VALUES:
            self.show(values())
        self._bar.update(1)

    def show(self, values: Mapping[str, float]) -> None:
        """Replaces the values behind the bar; of `values`, those of SHOWN count."""
        shown = {label: f"{values[name]:.3g}" for name, label in self.SHOWN.items() if name in values}
        self._bar.set_postfix(shown, refresh=False)
        self._shown_at = time.monotonic()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
