"""Model calls shared by environments that need a chunk at the same time, off the event loop.

One task collects what is asked for. It waits a little where more clients are connected than have asked, then has the
samples prepared in several threads, and their images resized there one by one, and the model called in the one thread
that owns it, for all at once. Meanwhile the next calls are collected.
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


class ModelFailedError(RuntimeError):
    """A policy could not be loaded, or its network failed: not the fault of what was asked."""


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

    async def warm_up(self, name: str, samples: Sequence[dict[str, Any]]) -> None:
        """Calls a policy for each batch size with copies of each sample, so that no request waits for the compiler."""
        for size in self._batch_sizes or [1]:
            for sample in samples:
                await asyncio.gather(*self.submit(name, [sample] * size, client=self))

    async def close(self) -> None:
        """Ends the threads when their present call is over; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for asked in self._waiting:
            asked.future.cancel()
        for threads in (self._owner, self._preparers):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    def submit(self, name: str, samples: Sequence[dict[str, Any]], client: object) -> list[asyncio.Future[Chunk]]:
        """Returns, at once, what will hold a chunk of the policy called `name` for each sample, or why there is none.

        Args:
            name: of the policy.
            samples: raw samples.
            client: whoever asks; to tell how many clients have. It need not wait for its chunks.
        """
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        asked = [_Asked(name, sample, loop.create_future(), client, now) for sample in samples]
        for one in asked:
            one.future.add_done_callback(_look_at)
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
            _fail(batch, _model_failure(policy))
            return
        loaded = time.perf_counter()
        fine = await self._prepared(policy, batch)
        if not fine:
            return
        ready = time.perf_counter()
        [called] = await self._in(self._owner, [functools.partial(self._call, policy, [inputs for _, inputs in fine])])
        if isinstance(called, BaseException):
            if len(fine) == 1:
                _fail([fine[0][0]], _model_failure(called))
            else:  # whose fault it was shows when each is called alone
                for asked, _ in fine:
                    await self._answer(name, [asked])
            return
        actions, model_s, post_s = called
        for (asked, _), one in zip(fine, actions, strict=True):
            timing = Timing(*(1000 * value for value in (loaded - asked.at, ready - loaded, model_s, post_s)))
            if not np.isfinite(one).all():
                _fail([asked], ModelFailedError(f"a chunk of policy {name!r} holds NaN or infinity"))
            elif not asked.future.done():
                asked.future.set_result(Chunk(one, timing))

    async def _prepared(self, policy: Acting, batch: list[_Asked]) -> list[tuple[_Asked, dict[str, Any]]]:
        """Returns the model's inputs of those for whom there are any; the others get their errors."""
        samples = await self._resized(policy, [asked.sample for asked in batch])
        prepared = await self._in(self._preparers, [functools.partial(policy.prepare, sample) for sample in samples])
        fine = []
        for asked, inputs in zip(batch, prepared, strict=True):
            if not isinstance(inputs, BaseException):
                fine.append((asked, inputs))
            elif isinstance(inputs, ValueError | KeyError):  # what is wrong with the sample
                _fail([asked], inputs)
            else:
                _fail([asked], _model_failure(inputs))
        return fine

    async def _resized(self, policy: Acting, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the samples with images at the model's size; one that cannot be is left for `prepare` to refuse."""
        places = [(i, camera) for i, sample in enumerate(samples) for camera in sample.get("images", {})]
        calls = [functools.partial(policy.resize, samples[i]["images"][camera]) for i, camera in places]
        images: list[dict[str, np.ndarray]] = [{} for _ in samples]
        for (i, camera), resized in zip(places, await self._in(self._preparers, calls), strict=True):
            is_done = not isinstance(resized, BaseException)
            images[i][camera] = resized if is_done else samples[i]["images"][camera]
        return [sample | {"images": images[i]} if images[i] else sample for i, sample in enumerate(samples)]

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
        """Returns what the calls return, or raise, once all are over."""
        loop = asyncio.get_running_loop()
        running = [loop.run_in_executor(threads, _caught, call) for call in calls]
        return await asyncio.gather(*running, return_exceptions=True)


def _look_at(future: asyncio.Future[Chunk]) -> None:
    """Has asyncio not complain of an error that nobody waits for any more."""
    if not future.cancelled():
        future.exception()


def _caught(call: Callable[[], Result]) -> Result:
    """Calls; what no future can hold, and would never be heard of, becomes an error that it can.

    Raises:
        RuntimeError: StopIteration was raised.
    """
    try:
        return call()
    except StopIteration as error:
        raise RuntimeError("an iterator ended early") from error


def _model_failure(cause: BaseException) -> ModelFailedError:
    failure = ModelFailedError(f"{type(cause).__name__}: {cause}")
    failure.__cause__ = cause
    return failure


def _fail(batch: list[_Asked], error: BaseException) -> None:
    for asked in batch:
        if not asked.future.done():
            asked.future.set_exception(error)
