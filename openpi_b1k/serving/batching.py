"""Model calls shared by environments that need a chunk at the same time, off the event loop.

One task collects what is asked for. It waits a little where more clients are connected than have asked, then has the
samples prepared in several threads, and the model called in the one thread that owns it, for all at once. Meanwhile the
next calls are collected.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from openpi_b1k.serving.policies import Acting, Policies

Result = TypeVar("Result")

WINDOW_S = 0.004
"""How long a request waits for those of other clients."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where the time of a chunk went, in ms; of a shared call, the whole of it."""

    queue_wait_ms: float
    """From being asked for to the beginning of its call; loading another checkpoint counts as waiting."""
    preprocess_ms: float
    model_ms: float
    """Until the chunks are computed."""
    post_ms: float


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """A predicted chunk."""

    actions: np.ndarray
    """float32 [action horizon, action size], in the robot's units."""
    timing: Timing


@dataclasses.dataclass(eq=False)
class _Asked:
    policy: str
    sample: dict[str, Any]
    future: asyncio.Future[Chunk]
    client: object
    at: float


class Batcher:
    """Answers requests for chunks. Belongs to one event loop; `close` ends its threads."""

    def __init__(
        self,
        policies: Policies,
        *,
        batch_sizes: Sequence[int] = (),
        num_clients: Callable[[], int] = lambda: 1,
        window_s: float = WINDOW_S,
    ) -> None:
        """Starts no call.

        Args:
            policies: only ever asked for a policy in the thread that owns them.
            batch_sizes: those the policies are compiled for: a call is filled up to the next one with copies, and one
                above the largest is split. None: a call has as many samples as there are.
            num_clients: how many clients are connected; a call is not held back once all of them have asked.
            window_s: how long it is held back at most.
        """
        self._policies = policies
        self._batch_sizes = sorted(batch_sizes)
        self._num_clients = num_clients
        self._window_s = window_s
        self._waiting: list[_Asked] = []
        self._arrived = asyncio.Event()
        self._owner = concurrent.futures.ThreadPoolExecutor(1, "policy")
        self._preparers = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "prepare")
        self._task: asyncio.Task[None] | None = None

    async def warm_up(self, name: str, sample: dict[str, Any]) -> None:
        """Calls a policy once for each batch size, so that no request waits for the compiler."""
        for size in self._batch_sizes or [1]:
            await asyncio.gather(*self._submit(name, [sample] * size, client=self))

    async def chunks(self, name: str, samples: Sequence[dict[str, Any]], client: object) -> list[Chunk | Exception]:
        """Returns a chunk of the policy called `name` for each sample, or why there is none.

        Args:
            name: of the policy.
            samples: raw samples.
            client: whoever asks; to tell how many clients have.
        """
        return await asyncio.gather(*self._submit(name, samples, client), return_exceptions=True)  # type: ignore[return-value]  # futures are never cancelled, so no BaseException

    async def close(self) -> None:
        """Ends the threads when their present call is over; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for asked in self._waiting:
            asked.future.cancel()
        for threads in (self._owner, self._preparers):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    def _submit(self, name: str, samples: Sequence[dict[str, Any]], client: object) -> list[asyncio.Future[Chunk]]:
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        asked = [_Asked(name, sample, loop.create_future(), client, now) for sample in samples]
        self._waiting += asked
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return [one.future for one in asked]

    async def _run(self) -> None:
        while True:
            await self._collect()
            batch, self._waiting = self._waiting, []
            by_policy = collections.defaultdict(list)
            for asked in batch:
                by_policy[asked.policy].append(asked)
            limit = self._batch_sizes[-1] if self._batch_sizes else len(batch)
            for name, group in by_policy.items():
                for start in range(0, len(group), limit):
                    await self._answer(name, group[start : start + limit])

    async def _collect(self) -> None:
        """Waits for a request, and then until every client has one waiting or the window is over."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = asyncio.get_running_loop().time() + self._window_s
        while len({id(asked.client) for asked in self._waiting}) < self._num_clients():
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _answer(self, name: str, batch: list[_Asked]) -> None:
        """Gives each of a batch its chunk or its error: what fails for one sample fails for that one alone."""
        [policy] = await self._in(self._owner, [functools.partial(self._policies.get, name)])
        if isinstance(policy, BaseException):
            _fail(batch, policy)
            return
        loaded = time.perf_counter()
        prepared = await self._in(self._preparers, [functools.partial(policy.prepare, one.sample) for one in batch])
        fine = [(asked, inputs) for asked, inputs in zip(batch, prepared, strict=True) if isinstance(inputs, dict)]
        for asked, inputs in zip(batch, prepared, strict=True):
            if isinstance(inputs, BaseException):
                _fail([asked], inputs)
        if not fine:
            return
        ready = time.perf_counter()
        [called] = await self._in(self._owner, [functools.partial(self._call, policy, [inputs for _, inputs in fine])])
        if isinstance(called, BaseException):
            if len(fine) == 1:
                _fail([fine[0][0]], called)
            else:  # whose fault it was shows when each is called alone
                for asked, _ in fine:
                    await self._answer(name, [asked])
            return
        actions, model_s, post_s = called
        for (asked, _), one in zip(fine, actions, strict=True):
            timing = Timing(*(1000 * value for value in (loaded - asked.at, ready - loaded, model_s, post_s)))
            if not asked.future.done():
                asked.future.set_result(Chunk(one, timing))

    def _call(self, policy: Acting, inputs: list[dict[str, Any]]) -> tuple[list[np.ndarray], float, float]:
        """Returns finished chunks, and the seconds the model and what follows it took."""
        size = next((size for size in self._batch_sizes if size >= len(inputs)), len(inputs))
        start = time.perf_counter()
        chunks = policy.predict(inputs + inputs[-1:] * (size - len(inputs)))[: len(inputs)]
        computed = time.perf_counter()
        actions = [policy.finish(chunk, one) for chunk, one in zip(chunks, inputs, strict=True)]
        return actions, computed - start, time.perf_counter() - computed

    async def _in(
        self, threads: concurrent.futures.ThreadPoolExecutor, calls: Sequence[Callable[[], Result]]
    ) -> list[Result | BaseException]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(threads, call) for call in calls], return_exceptions=True)


def _fail(batch: list[_Asked], error: BaseException) -> None:
    for asked in batch:
        if not asked.future.done():
            asked.future.set_exception(error)
