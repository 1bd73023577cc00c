"""A server under steady load: every reply checked, memory watched."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import time

from openpi_b1k.benchmarks import policy, policy_traffic
from openpi_b1k.serving.assembly import Setup, serving_in_thread
from openpi_b1k.serving.prompts import PromptBook

RATE = 30.0
"""Requests per second of all clients together."""
NUM_CLIENTS = 3
NUM_READINGS = 50
"""Of memory, spread evenly."""


@dataclasses.dataclass(frozen=True)
class Soak:
    """What came of it; every reply was the one to its request, or there would be an error."""

    seconds: float
    requests: int
    requests_per_second: float
    longest_ms: float
    """Longest round trip of a request."""
    memory_mib: float
    """Of the server's process, at most in the first two fifths of the time."""
    growth_mib: float
    """By how much more it was at most in the last two fifths."""
    load: float
    """Of the machine, over the last minute of it."""


def measure(seconds: float, subject: policy.Subject | None = None) -> Soak:
    """Returns what a server did that was sent RATE requests per second of full-size images for so long.

    Args:
        seconds: at least a minute tells something of memory.
        subject: with the null network; default: at the sizes of a full model.

    Raises:
        RuntimeError: a reply was not the one to its request, or a client lost its connection.
    """
    subject = subject or policy.null_subject()
    setup = Setup(subject.policies, PromptBook(fixed=policy.PROMPT), batch_sizes=tuple(range(1, NUM_CLIENTS + 1)))
    with serving_in_thread(setup) as port, policy_traffic.processes(NUM_CLIENTS) as clients:
        began = time.perf_counter()
        runs = [
            clients.submit(policy_traffic.soak, port, seconds, RATE / NUM_CLIENTS, number, subject.action_horizon)
            for number in range(NUM_CLIENTS)
        ]
        memory = []
        while concurrent.futures.wait(runs, seconds / NUM_READINGS, concurrent.futures.FIRST_EXCEPTION).not_done:
            memory.append(_memory_mib())
            if any(run.done() and run.exception() for run in runs):
                break
        sent, longest = zip(*(run.result() for run in runs), strict=True)
        took = time.perf_counter() - began
    part = max(1, 2 * len(memory) // 5)
    early, late = max(memory[:part]), max(memory[-part:])
    return Soak(took, sum(sent), sum(sent) / took, max(longest), early, late - early, os.getloadavg()[0])


def _memory_mib() -> float:
    """Returns what this process holds in memory."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024
