"""What a server is sent while it is measured: an evaluator's messages at full size, from a process of their own.

A client in the server's process would share its interpreter lock, and what it does would count as the server's time.
"""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import time
from typing import Any

import numpy as np

from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO_2025
from openpi_b1k.serving import protocol
from openpi_b1k.serving.client import Client

CHANNELS = 4
"""The simulator renders RGBA; the fourth is dropped before the resize. Other clients send 3."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """One reply, in ms."""

    server_timing: dict[str, float]
    total_ms: float
    """From its request's last byte to the reply handed to the socket; the server tells it with the next reply."""
    round_trip_ms: float
    """From the request's first byte handed to the socket to the reply read, packing and unpacking included."""

    @property
    def is_new_chunk(self) -> bool:
        """Whether the model was asked for it."""
        return self.server_timing["preprocess_ms"] > 0


def observation(num_envs: int, mark: float = 0.0, seed: int = 0, channels: int = CHANNELS) -> dict[str, Any]:
    """Returns what the evaluator of 2026 sends for `num_envs` environments, at the cameras' sizes, of noise.

    Args:
        num_envs: leading size of every array.
        mark: of the base's first velocity in environment 0, and 0.01 more in each one after, to tell replies apart.
        seed: of the noise.
        channels: of the images.
    """
    random = np.random.default_rng(seed)
    proprio = np.zeros((num_envs, PROPRIO_2025.size), np.float32)
    proprio[:, PROPRIO_2025.slice("base_qvel").start] = mark + 0.01 * np.arange(num_envs)
    images = {
        f"{camera.simulator_name}::rgb": random.integers(
            0, 256, (num_envs, camera.size, camera.size, channels), np.uint8
        )
        for camera in CAMERAS
    }
    return {protocol.PROPRIO: proprio, **images, protocol.TASK_ID: np.zeros((num_envs, 1), np.int64)}


def exchange(port: int, num_envs: int, channels: int, num_chunks: int, replies_per_chunk: int) -> list[Reply]:
    """Returns the replies to episodes of one chunk each, one request after the other, without those of the first."""
    timings, round_trips = [], []
    message = observation(num_envs, channels=channels)
    with Client("127.0.0.1", port) as client:
        for _ in range(1 + num_chunks):
            client.reset()
            for _ in range(replies_per_chunk):
                began = time.perf_counter()
                client.infer(message)
                round_trips.append(1000 * (time.perf_counter() - began))
                timings.append(client.last_timing)
        client.infer(message)  # tells the total of the reply before
    totals = [timing["prev_total_ms"] for timing in (*timings[1:], client.last_timing)]
    return [Reply(*each) for each in zip(timings, totals, round_trips, strict=True)][replies_per_chunk:]


def soak(port: int, seconds: float, rate: float, client_number: int, action_horizon: int) -> tuple[int, float]:
    """Sends one environment's observations at a steady rate; returns how many, and the longest round trip in ms.

    Args:
        port: of a server whose policy answers with the state as every action, and executes whole chunks.
        seconds: how long.
        rate: requests per second; what comes late is made up for.
        client_number: marks this client's observations.
        action_horizon: of the policy; an episode is a chunk and a half, so that chunks end by themselves and by resets.

    Raises:
        RuntimeError: a reply is not the one to its request.
    """
    message = observation(1, seed=client_number)
    began, longest_ms, sent = time.perf_counter(), 0.0, 0
    episode_length = math.ceil(1.5 * action_horizon)
    with Client("127.0.0.1", port) as client:
        while (now := time.perf_counter()) - began < seconds:
            time.sleep(max(0.0, began + sent / rate - now))
            step = sent % episode_length
            if step == 0:
                client.reset()
            message[protocol.PROPRIO][0, PROPRIO_2025.slice("base_qvel").start] = _mark(client_number, sent)
            asked = time.perf_counter()
            [action] = client.infer(message)[protocol.ACTION]
            longest_ms = max(longest_ms, 1000 * (time.perf_counter() - asked))
            expected = _mark(client_number, sent - step % action_horizon)
            if abs(action[ACTION.slice("base").start] - expected) > 1e-5:
                raise RuntimeError(
                    f"client {client_number}, request {sent}: got {action.tolist()}, expected {expected}"
                )
            sent += 1
    return sent, longest_ms


def processes(num: int) -> concurrent.futures.ProcessPoolExecutor:
    """Returns `num` fresh processes for clients."""
    return concurrent.futures.ProcessPoolExecutor(num, multiprocessing.get_context("spawn"))


def _mark(client_number: int, request: int) -> float:
    """Returns a number in [-1, 1) that neither another client's request nor a recent one of this client has."""
    return -1 + 0.2 * (client_number % 10) + 0.0002 * (request % 997)
