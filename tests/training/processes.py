"""Runs of scripts/train.py in processes of their own, one or several that belong together, on two devices each."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).parents[2]
PATIENCE_S = 120.0
"""Until a process that should have ended by then is killed, and its test fails."""
# The debug recipe, smaller; log lines come often, checkpoints only when asked for.
FLAGS = "debug --exp-name run --batch-size 4 --model.image-size 14 --model.vlm.depth 1 --model.action-expert.depth 1"


def free_port() -> int:
    """Returns a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """The processes of one run, killed when the test is over."""

    def __init__(self, directory: pathlib.Path, count: int, flags: str, devices: int = 2, only_last: str = "") -> None:
        """Starts `count` processes with `devices` fake devices each; `only_last` are flags of the last one alone."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),  # pytest's, for all tests of a session
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.run = directory / "debug" / "run"
        self._logs = [directory / f"log-{i}.txt" for i in range(count)]
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *FLAGS.split(), *flags.split()]
        command += ["--checkpoint-dir", str(directory)]
        if count > 1:
            command += [
                "--distributed.coordinator",
                f"127.0.0.1:{free_port()}",
                "--distributed.num-processes",
                f"{count}",
            ]
        self.started = []
        for i, log in enumerate(self._logs):
            number = ["--distributed.process-id", str(i)] if count > 1 else []
            number += only_last.split() if i == count - 1 else []
            with log.open("w") as output:
                self.started.append(
                    subprocess.Popen(
                        [*command, *number], stdout=output, stderr=output, env=environment, start_new_session=True
                    )
                )

    def __enter__(self) -> "Processes":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends what is left of them, worker processes included."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, i: int) -> str:
        """Returns what process `i` has written."""
        return self._logs[i].read_text()

    def await_lines(self, count: int) -> None:
        """Waits until the run has written `count` lines of metrics."""
        path, deadline = self.run / "metrics.jsonl", time.monotonic() + PATIENCE_S
        while not path.is_file() or len(path.read_text().splitlines()) < count:
            ended = [process.poll() for process in self.started]
            if time.monotonic() > deadline or ended != [None] * len(ended):
                raise AssertionError(f"no {count} lines of metrics; exit statuses {ended}; {self.log(0)[-3000:]}")
            time.sleep(0.05)

    def statuses(self) -> list[int]:
        """Waits until all have ended and returns their exit statuses."""
        deadline = time.monotonic() + PATIENCE_S
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.started]
