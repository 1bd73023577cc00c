"""From a request to its reply: whose turn it is to be asked, what the policy is told, what is executed now."""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from openpi_b1k.serving import protocol
from openpi_b1k.serving.batching import Batcher, Chunk, Timing
from openpi_b1k.serving.executor import Executor
from openpi_b1k.serving.policies import Policies, Profile
from openpi_b1k.serving.prompts import PromptBook, task_name
from openpi_b1k.serving.requests import Environment, Request, raw_sample
from openpi_b1k.serving.sessions import Session, Slot

logger = logging.getLogger(__name__)

NO_CALL = Timing(0.0, 0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply without its timing, and the timing of the model call in it."""

    reply: dict[str, Any]
    timing: Timing


class Answers:
    """Answers requests of all sessions."""

    def __init__(
        self,
        policies: Policies,
        batcher: Batcher,
        prompts: PromptBook,
        make_executor: Callable[[Profile], Executor],
    ) -> None:
        """Asks nothing yet.

        Args:
            policies: who acts.
            batcher: of the same policies.
            prompts: what they are told.
            make_executor: how an environment of a policy executes its chunks.
        """
        self._policies, self._batcher, self._prompts, self._make_executor = policies, batcher, prompts, make_executor
        self._trained = policies.prompts

    async def answer(self, session: Session, request: Request) -> Answer:
        """Returns the reply to a request; images are looked at only where a new chunk is due.

        Raises:
            KeyError: an observation lacks something.
            ValueError: something in it is wrong, or its task has no policy or prompt.
        """
        tasks = [self._task(one) for one in request.environments]
        if request.kind == "openpi":
            [chunk] = await self._ask(
                session, [(one, task, 0) for one, task in zip(request.environments, tasks, strict=True)]
            )
            return Answer({protocol.ACTIONS: chunk.actions}, chunk.timing)
        self._assign(session, tasks)
        num_actions = request.chunk_size if request.chunk_size and session.can_replay else 1
        timing = await self._refill(session, request.environments, num_actions)
        if min(len(slot.executor.remaining(num_actions)) for slot in session.slots) < num_actions:
            logger.warning("chunks to replay cannot have %d actions here: answering step by step", num_actions)
            session.can_replay, num_actions = False, 1
        actions = np.stack([slot.take(num_actions) for slot in session.slots])  # [environments, steps, entries]
        if request.kind == "2025":
            [actions] = actions
        reply = {protocol.ACTION: actions[..., 0, :]}
        if request.chunk_size and session.can_replay:
            reply[protocol.ACTION_CHUNK] = actions
        return Answer(reply, timing)

    def _task(self, environment: Environment) -> str | None:
        return None if environment.task_id is None else task_name(environment.task_id, self._trained)

    def _assign(self, session: Session, tasks: Sequence[str | None]) -> None:
        """Gives every environment its slot; a new one where its task is another than before."""
        if session.slots and len(session.slots) != len(tasks):
            raise ValueError(
                f"this connection has {len(session.slots)} environments and now sends {len(tasks)}; send a reset first"
            )
        if not session.slots:
            session.slots = [self._slot(task) for task in tasks]
        for i, task in enumerate(tasks):
            if session.slots[i].task != task:
                session.slots[i] = self._slot(task)

    def _slot(self, task: str | None) -> Slot:
        return Slot(self._make_executor(self._policies.profile(task)), task)

    async def _refill(self, session: Session, environments: Sequence[Environment], num_actions: int) -> Timing:
        """Asks the model for the environments whose next actions are not known, all in one call."""
        due = [i for i, slot in enumerate(session.slots) if slot.executor.needs_chunk(num_actions)]
        slots = [session.slots[i] for i in due]
        chunks = await self._ask(
            session, [(environments[i], slot.task, slot.num_steps) for i, slot in zip(due, slots, strict=True)]
        )
        for slot, chunk in zip(slots, chunks, strict=True):
            slot.executor.accept(chunk.actions)
        return max((chunk.timing for chunk in chunks), key=dataclasses.astuple, default=NO_CALL)

    async def _ask(self, session: Session, asked: Sequence[tuple[Environment, str | None, int]]) -> list[Chunk]:
        """Returns the chunk of each (environment, its task, its step)."""
        by_policy: dict[str, list[int]] = collections.defaultdict(list)
        samples = []
        for i, (environment, task, step) in enumerate(asked):
            profile = self._policies.profile(task)
            prompt = self._prompts.prompt(task, environment.prompt, step, profile.prompts)
            samples.append(raw_sample(environment.observation, profile.robot, profile.source, prompt))
            by_policy[profile.name].append(i)
        groups = await asyncio.gather(
            *[self._batcher.chunks(name, [samples[i] for i in group], session) for name, group in by_policy.items()]
        )
        found = {
            i: one
            for group, chunks in zip(by_policy.values(), groups, strict=True)
            for i, one in zip(group, chunks, strict=True)
        }
        chunks = [found[i] for i in range(len(asked))]
        for chunk in chunks:
            if isinstance(chunk, BaseException):
                raise chunk
        return [chunk for chunk in chunks if isinstance(chunk, Chunk)]
