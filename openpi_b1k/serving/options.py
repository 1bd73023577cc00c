"""What `scripts/serve_b1k.py` can be asked for, and the server that makes."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Literal

from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.serving.assembly import Setup
from openpi_b1k.serving.policies import Acting, Assignment, open_policies, read_assignment
from openpi_b1k.serving.prompts import PromptBook, read_schedule
from openpi_b1k.serving.server import Limits


@dataclasses.dataclass(frozen=True)
class Options:
    """Serves a checkpoint: compiles, warms up, and only then listens; then `GET /healthz` answers OK."""

    checkpoint: pathlib.Path | None = None
    """A checkpoint directory, <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>, or a converted one: all that is
    needed."""
    checkpoints_by_task: pathlib.Path | None = None
    """Instead: JSON {"checkpoints": {NAME: {"path": DIRECTORY, "tasks": [TASK NAME, ...]}}}; one at a time
    is loaded."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 to be reached from other machines: give a key then."""
    port: int = 8000
    api_key_file: pathlib.Path | None = None
    """Holds the key that clients must send in the header `Authorization: Api-Key KEY`."""
    num_envs: tuple[int, ...] = (1,)
    """Numbers of environments to compile for; model calls are filled up to the next one, and split above the
    largest."""
    prompt: str | None = None
    """What the policy is told, whatever the task or the client says."""
    schedule: pathlib.Path | None = None
    """Prompts by time: JSON {TASK NAME: [{"until_step": 120, "prompt": "..."}, ..., {"until_step": null, ...}]}."""
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    limits: Limits = dataclasses.field(default_factory=Limits)
    seed: int = 0
    """Of the noise that sampling starts from."""
    weights_kind: Literal["ema", "live"] = "ema"
    """The weights the checkpoint acts with, its moving average where it has one, or the live ones."""

    def setup(self, load: Callable[[pathlib.Path], Acting]) -> Setup:
        """Returns the server these options ask for; `load` gives the policy of a directory.

        Raises:
            FileNotFoundError: one of the files or directories is missing.
            ValueError: options contradict each other, or one of the files is wrong.
        """
        if (self.checkpoint is None) == (self.checkpoints_by_task is None):
            raise ValueError("give either --checkpoint DIR or --checkpoints-by-task FILE")
        if self.checkpoint is not None:
            assignment = Assignment({str(self.checkpoint): self.checkpoint})
        else:
            assignment = read_assignment(pathlib.Path(str(self.checkpoints_by_task)))
        schedule = {} if self.schedule is None else read_schedule(self.schedule)
        return Setup(
            policies=open_policies(assignment, load),
            prompts=PromptBook(self.prompt, schedule),
            execution=self.execution,
            batch_sizes=self.num_envs,
            api_key=None if self.api_key_file is None else read_key(self.api_key_file),
            limits=self.limits,
            metadata={"checkpoints": list(assignment.paths), "execution": self.execution.kind},
        )


def read_key(path: pathlib.Path) -> str:
    """Returns the key in a file, without the space around it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no key at {path}")
    key = path.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"{path} is empty; a server with an empty key would let nobody in")
    return key
