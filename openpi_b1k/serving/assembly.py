"""A server put together: policies warm first, then an address that answers."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA
from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.serving.answers import Answers
from openpi_b1k.serving.batching import WINDOW_S, Batcher
from openpi_b1k.serving.chunking import make_executor
from openpi_b1k.serving.continuing import Guidance, blank_continuation, guidance_for
from openpi_b1k.serving.executor import Executor
from openpi_b1k.serving.memory import keep_freed_memory
from openpi_b1k.serving.policies import Policies, Profile
from openpi_b1k.serving.prompts import PromptBook
from openpi_b1k.serving.server import Limits, Server
from openpi_b1k.serving.sessions import KEEP_S, Sessions


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is served, and how."""

    policies: Policies
    prompts: PromptBook = dataclasses.field(default_factory=PromptBook)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    batch_sizes: tuple[int, ...] = (1,)
    """Compiled before listening; calls are filled up to these."""
    api_key: str | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The greeting."""
    window_s: float = WINDOW_S
    keep_s: float = KEEP_S

    def __post_init__(self) -> None:
        if min(self.batch_sizes, default=1) < 1:
            raise ValueError(f"batch sizes must be at least 1; got {self.batch_sizes}")


@contextlib.asynccontextmanager
async def serving(setup: Setup, host: str = "127.0.0.1", port: int = 8000) -> AsyncIterator[int]:
    """Serves while entered; gives the port, which is a free one if 0 was asked for. Nothing listens before it is warm.

    Raises:
        FileNotFoundError: a file that the execution needs is missing.
        OSError: the address cannot be listened to.
        ValueError: the policies cannot be executed like that.
    """
    keep_freed_memory()
    sessions = Sessions(setup.keep_s)
    batcher = Batcher(
        setup.policies,
        batch_sizes=setup.batch_sizes,
        num_clients=lambda: sessions.num_open,
        window_s=setup.window_s,
    )

    def executor(profile: Profile) -> Executor:
        return make_executor(setup.execution, profile.robot.action, profile.action_horizon)

    guidances = {
        profile.name: guidance_for(setup.execution, profile.robot.action, profile.action_horizon)
        for profile in setup.policies.profiles
    }
    answers = Answers(setup.policies, batcher, setup.prompts, executor, guidances)
    server = Server(answers, sessions, metadata=setup.metadata, api_key=setup.api_key, limits=setup.limits)
    try:
        for profile in setup.policies.profiles:
            executor(profile)  # refuses an execution horizon beyond the chunk now, and not at the first request
        first = setup.policies.profiles[0]
        await batcher.warm_up(first.name, blank_samples(first, guidances[first.name]))
        yield await server.start(host, port)
    finally:
        await server.close()
        await batcher.close()


@contextlib.contextmanager
def serving_in_thread(setup: Setup, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Serves from a thread while entered; gives the port.

    Raises:
        OSError: the address cannot be listened to.
        ValueError: the policies cannot be executed like that.
    """
    loop, exits = asyncio.new_event_loop(), contextlib.AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()
    try:
        entering = exits.enter_async_context(serving(setup, host, port))
        yield asyncio.run_coroutine_threadsafe(entering, loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(exits.aclose(), loop).result()
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def blank_samples(profile: Profile, guidance: Guidance | None) -> list[dict[str, Any]]:
    """Returns raw samples for a policy to warm up on: one, and one that continues a chunk where that is done."""
    free = blank_sample(profile)
    if guidance is None:
        return [free]
    known = blank_continuation(guidance, profile.robot.action)
    return [free, free | {"continuation": known, "guidance": guidance}]


def blank_sample(profile: Profile) -> dict[str, Any]:
    """Returns a raw sample of black images at the cameras' sizes, for a policy to warm up on."""
    robot, source = profile.robot, profile.source
    cameras = [robot.camera(name) for name in source.cameras]
    sample: dict[str, Any] = {
        "proprio": np.zeros(robot.proprios[0].size, np.float32),
        "images": {camera.name: np.zeros((camera.size, camera.size, 3), np.uint8) for camera in cameras},
        "prompt": next(iter(profile.prompts.values()), "wait"),
    }
    if "depth" in source.modalities:
        size = robot.camera(EXTRA_CAMERA).size
        sample["depth"] = {EXTRA_CAMERA: np.ones((size, size), np.float32)}
    return sample
