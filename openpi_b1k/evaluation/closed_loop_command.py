"""The subcommand `closed-loop` of `scripts/evaluate.py`: its arguments and the text it prints."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Literal

from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.evaluation.open_loop.choice import DataChoice

if TYPE_CHECKING:
    from openpi_b1k.evaluation.closed_loop.outcome import Result


@dataclasses.dataclass(frozen=True)
class ClosedLoop(Settings):
    """Plays a checkpoint of a sample recipe, or a running server, as the evaluator would, on unseen layouts."""

    checkpoint: pathlib.Path | None = None
    """A checkpoint directory, <checkpoint_dir>/<recipe>/<exp_name>/<completed steps>; it is served in this process."""
    host: str | None = None
    """Instead: where a server runs that is asked."""
    port: int = 8000
    """Of that server."""
    policy_endpoints: tuple[str, ...] = ()
    """Instead: HOST:PORT of one server per environment; as many are played at a time."""
    api_key_file: pathlib.Path | None = None
    """Holds the key that a running server wants."""
    environments: Literal["sample", "recorded"] = "sample"
    """sample: unseen layouts of the sample world; recorded: episodes of a data set, of which the recorded observations
    are shown whatever the policy does: it tells time and errors, and nothing of success."""
    data: DataChoice = dataclasses.field(default_factory=DataChoice)
    """Of recorded episodes."""
    max_steps: int | None = None
    """Of each recorded episode; default: all."""
    against: pathlib.Path | None = None
    """Compare, pair by pair, with another --output-dir's results, or with another checkpoint, which is then played on
    the same layouts."""
    json: pathlib.Path | None = None
    """Where to write the result with every episode's outcome."""

    def __post_init__(self) -> None:
        """Refuses what cannot be played.

        Raises:
            ValueError: who is played is not said once, or a setting is out of its range.
        """
        super().__post_init__()
        if self.environments == "sample" and (self.data != DataChoice() or self.max_steps is not None):
            raise ValueError("--data.* and --max-steps are for --environments recorded")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1; got {self.max_steps}")
        is_remote = self.host is not None or bool(self.policy_endpoints)
        if sum((self.checkpoint is not None, self.host is not None, bool(self.policy_endpoints))) != 1:
            raise ValueError("give one of --checkpoint DIR, --host HOST and --policy-endpoints HOST:PORT ...")
        if is_remote and (self.ablate in ("weights", "demonstration") or self.execution_horizon is not None):
            raise ValueError(
                "--ablate weights, --ablate demonstration and --execution-horizon need --checkpoint: a running server "
                "has its own weights and its own way to execute chunks"
            )

    def run(self) -> str:
        """Returns the report, whose last line has the success rate.

        Raises:
            ValueError: an argument cannot be used with this checkpoint, or a server cannot be reached.
            FileNotFoundError: there is no such checkpoint, or nothing to compare with.
            FileExistsError: the output directory has a result of one of these rollouts.
        """
        if self.environments == "recorded":
            return self._play_recorded()
        from openpi_b1k.evaluation.closed_loop.rivals import rivals  # noqa: PLC0415  # so that --help answers at once

        other = None if self.against is None else rivals(self.against, self)
        result = self._play()
        self._write(result.to_json(other))
        return result.report(other)

    def _play(self) -> "Result":
        from openpi_b1k.evaluation.closed_loop import sample_world  # noqa: PLC0415  # so that --help answers at once
        from openpi_b1k.evaluation.closed_loop.players import Endpoint  # noqa: PLC0415  # likewise
        from openpi_b1k.serving.options import read_key  # noqa: PLC0415  # likewise

        if self.checkpoint is not None:
            return sample_world.play_checkpoint(self.checkpoint, self)
        addresses = self.policy_endpoints or (f"{self.host}:{self.port}",)
        key = None if self.api_key_file is None else read_key(self.api_key_file)
        replay = self.replay_action_chunk_size
        endpoints = [Endpoint(*parse_address(one), self.protocol, replay, key) for one in addresses]
        return sample_world.play_endpoints(" ".join(addresses), endpoints, self)

    def _play_recorded(self) -> str:
        from openpi_b1k.evaluation.closed_loop.recorded import play_recorded  # noqa: PLC0415  # likewise

        if self.checkpoint is None or self.against is not None:
            raise ValueError(
                "recorded episodes need --checkpoint, whose config tells how their data are read, and know no success "
                "that could be compared with --against"
            )
        result = play_recorded(self.checkpoint, self, self.data, self.max_steps)
        self._write(result.to_json())
        return result.report()

    def _write(self, text: str) -> None:
        from openpi_b1k.evaluation.report_page import write_text  # noqa: PLC0415  # likewise

        if self.json is not None:
            write_text(self.json, text)


def parse_address(text: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT.

    Raises:
        ValueError: it has another form.
    """
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"an endpoint is HOST:PORT, such as 127.0.0.1:8000; got {text!r}")
    return host, int(port)
