"""The processes of one run: how they find each other, and how they end together.

JAX's own distributed runtime connects them; here is decided whether there are several, and what it is told. What it
leaves open, a named error when one of them dies, hangs or fails, is `liveness.py`.
"""

import dataclasses
import faulthandler
import hashlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from openpi_b1k import compilation, metrics
from openpi_b1k.config import serialize
from openpi_b1k.config.train import DistributedConfig, TrainConfig
from openpi_b1k.training import devices, liveness
from openpi_b1k.training.watchdog import end_process

logger = logging.getLogger(__name__)

AGREED_BYTES = 1024
"""Longest text that processes can agree on."""
INITIALIZATION_S = 300
"""Seconds that processes wait for each other at the start."""
JAX_MARGIN_S = 30
"""Seconds that JAX gives a silent process beyond ours, so that ours, which says what happened, comes first."""
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
"""Also turns off autotuning, which may choose other kernels each time. Source: XLA, debug_options_flags.cc."""
SIGNALLED = 128
"""Exit statuses from here on mean that a signal ended the run: every process then has saved and leaves in order."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was started as one of several."""

    launcher: Literal["flags", "slurm", "ompi"]
    process: int
    num_processes: int
    has_all_devices: bool
    """Whether all devices it can see are its own, instead of the one that has its number on this machine."""


def run(function: Callable[[TrainConfig], int], config: TrainConfig) -> int:
    """Returns the exit status of `function(config)`, called as one of the processes of a run.

    Call it before anything uses a device. Several processes end together: when one ends with another status than 0 or
    that of a signal, dies, or stands still, the others end within `distributed.heartbeat_timeout_s` and some seconds.
    """
    faulthandler.enable()
    devices.claim_memory()
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}".strip()
    try:
        launch = launched(config.distributed, os.environ)
        if launch is not None:
            initialize(config.distributed, launch)
    except (ValueError, ConnectionError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    metrics.setup_logging(is_main=jax.process_index() == 0)
    if launch is None:
        compilation.keep_programs()  # of several, JAX keeps the first one's; the others would tune kernels without it
        return function(config)
    with Membership(config.distributed) as membership:
        if not is_same(config):
            sys.stderr.write(
                f"error: process {launch.process} was given other flags than process 0; compare their command lines\n"
            )
            return membership.leave(2)
        return membership.leave(function(config))


def is_same(config: TrainConfig) -> bool:
    """Returns whether this process was given the same config as process 0, its own number apart."""
    values = serialize.flatten(dataclasses.replace(config, distributed=DistributedConfig()))
    digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()
    return digest == agreed(digest)


def launched(config: DistributedConfig, environment: Mapping[str, str]) -> Launch | None:
    """Returns how this process was started as one of several, or None if it is the only one.

    Raises:
        ValueError: a launcher started several, but does not say where process 0 is.
    """
    if config.num_processes is not None and config.process_id is not None:
        several = config.num_processes > 1
        return Launch("flags", config.process_id, config.num_processes, True) if several else None
    sees_one = "CUDA_VISIBLE_DEVICES" in environment and "," not in environment["CUDA_VISIBLE_DEVICES"]
    size = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ValueError(
                "this Open MPI (5 or later) does not tell its processes where the first one is; start them with "
                "`mpirun ... bash -c 'uv run scripts/train.py RECIPE --distributed.coordinator HOST:PORT "
                "--distributed.num-processes $OMPI_COMM_WORLD_SIZE --distributed.process-id $OMPI_COMM_WORLD_RANK'`, "
                "HOST being where rank 0 runs"
            )
        alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return Launch("ompi", int(environment["OMPI_COMM_WORLD_RANK"]), size, alone or sees_one)
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "SLURM_STEP_NODELIST" in environment and tasks > 1:
        alone = environment.get("SLURM_STEP_NUM_NODES") == str(tasks)
        return Launch("slurm", int(environment["SLURM_PROCID"]), tasks, alone or sees_one)
    return None


def initialize(config: DistributedConfig, launch: Launch) -> None:
    """Connects this process to the others through JAX; returns when all are there.

    Ends the process with an `error:` line if they do not come within five minutes.

    Raises:
        ConnectionError: process 0 cannot listen at the coordinator's address, or another reach it.
    """
    waiting = threading.Timer(
        INITIALIZATION_S - 5,
        end_process,
        [
            f"process {launch.process} of {launch.num_processes} ({socket.gethostname()}) has waited "
            f"{INITIALIZATION_S} s for the others; were all started, and can they reach process 0 at "
            f"{config.coordinator or f'the address that {launch.launcher} gave'}?"
        ],
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            cluster_detection_method="deactivate" if launch.launcher == "flags" else launch.launcher,
            initialization_timeout=INITIALIZATION_S,
            heartbeat_timeout_seconds=config.heartbeat_timeout_s + JAX_MARGIN_S,
        )
    except RuntimeError as error:  # JAX's own is one
        raise ConnectionError(
            f"process {launch.process} of {launch.num_processes} cannot join the others at "
            f"{config.coordinator or launch.launcher}: {error}"
        ) from error
    finally:
        waiting.cancel()
    if launch.has_all_devices:
        jax.config.update("jax_cuda_visible_devices", "all")  # JAX gives a task of Slurm or Open MPI one device


class Membership:
    """This process as one of several that end together; JAX connects them already."""

    def __init__(self, config: DistributedConfig) -> None:
        """Connects to the others once more, and says on process 0 where they all are."""
        self._process, self._num_processes = jax.process_index(), jax.process_count()
        peers = _peers(config)
        self._liveness = liveness.Liveness(
            self._process, self._num_processes, config.heartbeat_timeout_s, peers, end_process
        )
        device = jax.local_devices()[0]
        logger.info("process 0 of %d is on %s", self._num_processes, socket.gethostname())
        for _, process, host in peers:
            logger.info("process %d of %d is on %s", process, self._num_processes, host)
        logger.info("each has %d x %s", jax.local_device_count(), device.device_kind)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error, ends this process at once and has the others end: JAX would let them wait for each other."""
        if error is not None:
            traceback.print_exception(error)
            time.sleep(liveness.GRACE_S)  # the cause may be another process's end, which is noticed in this time
            self._end("has failed, see its log", 1)

    def leave(self, status: int) -> int:
        """Returns the exit status when all processes are ready to leave; does not return if it says that one failed."""
        if 0 < status < SIGNALLED:
            self._end(f"has ended with status {status}, see its log", status)
        jax.distributed.shutdown()
        self._liveness.close()
        return status

    def _end(self, why: str, status: int) -> None:
        self._liveness.fail(why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # not sys.exit: JAX's exit handler waits for processes that wait for this one


def agreed(text: str) -> str:
    """Returns process 0's text on every process.

    Raises:
        ValueError: it is longer than 1024 bytes.
    """
    if jax.process_count() == 1:
        return text
    encoded = text.encode()
    if len(encoded) > AGREED_BYTES:
        raise ValueError(f"processes can agree on a text of {AGREED_BYTES} bytes; this one has {len(encoded)}: {text}")
    padded = np.zeros(AGREED_BYTES, np.uint8)
    padded[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


def _peers(config: DistributedConfig) -> list[tuple[socket.socket, int, str]]:
    """Returns the connections that `liveness.Liveness` needs."""
    process, num_processes = jax.process_index(), jax.process_count()
    listener = liveness.Listener() if process == 0 else None
    hosts = [config.coordinator.rsplit(":", 1)[0]] if config.coordinator else []
    hosts = [*dict.fromkeys([*hosts, *liveness.own_hosts()])]
    token = secrets.token_hex(16)
    address = agreed(json.dumps([token, listener.port, hosts[:8]]) if listener is not None else "")
    token, port, hosts = json.loads(address)
    if listener is not None:
        peers = listener.accept(num_processes - 1, token)
    else:
        link = liveness.connect([(host, port) for host in hosts], process, token)
        peers = [] if link is None else [link]
        if link is None:
            logger.warning(
                "process %d of %d cannot reach process 0 at port %d of %s: if one of them dies, the other learns it "
                "from JAX, after %d s and without a readable line",
                *(process, num_processes, port, ", ".join(hosts), config.heartbeat_timeout_s + JAX_MARGIN_S),
            )
    return peers
