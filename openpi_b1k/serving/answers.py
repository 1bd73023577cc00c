"""From a request to its reply: whose turn it is to be asked, what the policy is told, what is executed now."""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from openpi_b1k.serving import protocol
from openpi_b1k.serving.batching import Batcher, Chunk, Timing
from openpi_b1k.serving.continuing import Guidance
from openpi_b1k.serving.executor import Continuation, Executor
from openpi_b1k.serving.policies import Policies, Profile
from openpi_b1k.serving.prompts import PromptBook, task_name
from openpi_b1k.serving.requests import Environment, Request, raw_sample
from openpi_b1k.serving.sessions import Pending, Session, Slot

logger = logging.getLogger(__name__)

NO_CALL = Timing(0.0, 0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply without its timing, and the timing of the model call in it."""

    reply: dict[str, Any]
    timing: Timing


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """What the model is asked."""

    environment: Environment
    task: str | None
    step: int = 0
    """Of the episode."""
    continuation: Continuation | None = None


class Answers:
    """Answers requests of all sessions."""

    def __init__(
        self,
        policies: Policies,
        batcher: Batcher,
        prompts: PromptBook,
        make_executor: Callable[[Profile], Executor],
        guidances: Mapping[str, Guidance | None],
    ) -> None:
        """Asks nothing yet.

        Args:
            policies: who acts.
            batcher: of the same policies.
            prompts: what they are told.
            make_executor: how an environment of a policy executes its chunks.
            guidances: policy name -> how its chunks continue those before; None where they do not.
        """
        self._policies, self._batcher, self._prompts, self._make_executor = policies, batcher, prompts, make_executor
        self._guidances, self._trained = guidances, policies.prompts

    async def answer(self, session: Session, request: Request) -> Answer:
        """Returns the reply to a request; images are looked at only where a new chunk is due.

        Raises:
            KeyError: an observation lacks something, this one or one whose chunk was computed meanwhile.
            ValueError: something in it is wrong, or its task has no policy or prompt.
        """
        tasks = [self._task(one) for one in request.environments]
        if request.kind == "openpi":
            [environment], [task] = request.environments, tasks
            [future] = self._submit(session, [_Question(environment, task)])
            chunk = await future
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
        """Has all environments know their next actions; returns the timing of the chunks that are new to this reply.

        A chunk is waited for only where the environment cannot go on without it, as in real time it mostly can: then
        the reply to a later request brings it in, or says what failed.
        """
        slots = session.slots
        found = [slot.adopt() for slot in slots]
        found += await self._arrived(slots, num_actions)
        due = [i for i, slot in enumerate(slots) if slot.pending is None and slot.executor.needs_chunk(num_actions)]
        questions = [
            _Question(environments[i], slots[i].task, slots[i].num_steps, slots[i].executor.continuation(num_actions))
            for i in due
        ]
        for i, chunk in zip(due, self._submit(session, questions), strict=True):
            slots[i].pending = Pending(slots[i].executor.now(), chunk)
        found += await self._arrived(slots, num_actions)
        return max((chunk.timing for chunk in found if chunk is not None), key=dataclasses.astuple, default=NO_CALL)

    async def _arrived(self, slots: Sequence[Slot], num_actions: int) -> list[Chunk | None]:
        """Returns the chunks without which an environment cannot hand out its next actions, once they are adopted."""
        waiting = [(slot, slot.pending.chunk) for slot in slots if slot.pending is not None]
        stuck = [(slot, chunk) for slot, chunk in waiting if not slot.executor.can_go_on(num_actions)]
        if stuck:
            await asyncio.wait([chunk for _, chunk in stuck])
        return [slot.adopt() for slot, _ in stuck]

    def _submit(self, session: Session, questions: Sequence[_Question]) -> list[asyncio.Future[Chunk]]:
        """Returns what will hold the answer to each question; those to one policy are asked in one call."""
        by_policy: dict[str, list[int]] = collections.defaultdict(list)
        samples = []
        for i, one in enumerate(questions):
            profile = self._policies.profile(one.task)
            prompt = self._prompts.prompt(one.task, one.environment.prompt, one.step, profile.prompts)
            sample = raw_sample(one.environment.observation, profile.robot, profile.source, prompt)
            if one.continuation is not None:
                sample |= {"continuation": one.continuation, "guidance": self._guidances[profile.name]}
            samples.append(sample)
            by_policy[profile.name].append(i)
        chunks = {}
        for name, group in by_policy.items():
            submitted = self._batcher.submit(name, [samples[i] for i in group], session)
            chunks.update(zip(group, submitted, strict=True))
        return [chunks[i] for i in range(len(questions))]
