"""The subcommand `open-loop` of `scripts/evaluate.py`."""

import dataclasses
import pathlib
from typing import Literal

from openpi_b1k.evaluation.open_loop.choice import DataChoice


@dataclasses.dataclass(frozen=True)
class OpenLoop:
    """Measures sampled chunks against demonstrated ones on held-out episodes, beside baselines; nothing is played."""

    checkpoint: pathlib.Path
    """A checkpoint directory, <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>."""
    data: DataChoice = dataclasses.field(default_factory=DataChoice)
    frames: int = 256
    """Chunks to sample, at frames spread evenly over episodes and their length."""
    seed: int = 0
    """Of the sampling noise; with the same seed, batch size and data, checkpoints get the same noise at each frame."""
    batch_size: int = 16
    """Frames that are sampled together."""
    weights_kind: Literal["ema", "live"] = "ema"
    """The weights the checkpoint acts with, its moving average where it has one, or the live ones."""
    json: pathlib.Path | None = None
    """Where to write every mean: by field, step, task and skill."""
    html: pathlib.Path | None = None
    """Where to write a page with the tables, curves over the chunk, and frames with their sampled actions."""

    def run(self) -> str:
        """Returns the tables as text.

        Raises:
            ValueError: an argument cannot be used with this checkpoint or these data.
            FileNotFoundError: checkpoint or data are not there.
        """
        from openpi_b1k.evaluation.open_loop import measuring, page, tables  # noqa: PLC0415  # so that --help is quick
        from openpi_b1k.evaluation.report_page import write_text  # noqa: PLC0415  # likewise

        sampling = measuring.Sampling(self.seed, self.batch_size, self.weights_kind, self.html is not None)
        measured = measuring.evaluate(self.checkpoint, self.data, self.frames, sampling)
        written = []
        if self.json is not None:
            written.append(write_text(self.json, measured.result.to_json()))
        if self.html is not None:
            written.append(page.write(self.html, measured))
        return "\n\n".join([tables.summary(measured.result), *(f"written: {path}" for path in written)])
