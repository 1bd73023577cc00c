"""What serving costs beside the model: the time from a request's last byte to its reply, over loopback, at full size.

The base of comparison is measured in the same run: bringing the cameras' images to the model's size, which every server
has to do when a new chunk is due. Without a checkpoint the network is a null one: it answers at once, with the state.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from openpi_b1k import paths
from openpi_b1k.benchmarks import policy_traffic
from openpi_b1k.benchmarks.policy_traffic import Reply
from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.contents import Assets
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, TransformConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import ACTION, CAMERAS
from openpi_b1k.serving import jax_backend, protocol
from openpi_b1k.serving.assembly import Setup, serving_in_thread
from openpi_b1k.serving.policies import Assignment, Policies, Profile, open_policies
from openpi_b1k.serving.policy import ModelSample, Policy
from openpi_b1k.serving.prompts import PromptBook
from openpi_b1k.transforms.images import resize_with_pad
from openpi_b1k.transforms.normalize import FieldStats, NormStats
from openpi_b1k.transforms.tokenize import Tokenizer

PROMPT = "Turn on the radio."
REPLIES_PER_CHUNK = 4
WITHIN_MS = 3.0
"""Aim of a reply without a new chunk, and of one with, beside one and a half times the resizes."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Times of one number of environments, in ms; those of stages are medians of replies with a new chunk."""

    num_envs: int
    channels: int
    """Of the images sent."""
    message_mib: float
    resize_p50: float
    """Of all cameras' images in RGB, one after the other, with nothing else going on."""
    new_chunk_p50: float
    """From the last byte received to the reply handed to the socket, the model left out."""
    new_chunk_p99: float
    new_chunk_aim: float
    """1.5 times the resizes and 3 ms."""
    kept_chunk_p50: float
    """The same of replies that need no new chunk."""
    kept_chunk_p99: float
    decode: float
    queue_wait: float
    preprocess: float
    model: float
    post: float
    round_trip_p50: float
    """As the client sees a reply with a new chunk, packing and sending included."""
    load: float
    """Of the machine, over the last minute, while this was measured."""


class NullNetwork:
    """Answers with the normalised state as every action."""

    def __init__(self, action_horizon: int) -> None:
        """Answers with chunks of `action_horizon` actions."""
        self._action_horizon = action_horizon

    def sample(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        """Returns one chunk per model sample, [n, ah, ad]."""
        return np.stack([np.tile(one["state"], (self._action_horizon, 1)) for one in inputs])


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured."""

    policies: Policies
    """One policy."""
    image_size: int
    """The model's, in pixels."""
    action_horizon: int


def null_subject(config: TrainConfig | None = None) -> Subject:
    """Returns the whole of serving around a null network; without a config, at the sizes of a full model."""
    if config is None:
        data = DataConfig(transforms=TransformConfig(tokenizer=SAMPLE_TOKENIZER))
        config = TrainConfig(weights="none", data=data)
    ones = np.ones(ACTION.size)
    stats = FieldStats(mean=0 * ones, std=ones, q01=-ones, q99=ones)
    tokenizer = Tokenizer(paths.fetch(config.data.transforms.tokenizer))
    assets = Assets(NormStats(stats, stats), {"turning_on_radio": PROMPT}, tokenizer.model_bytes)
    policy = Policy(config, assets, tokenizer, NullNetwork(config.model.action_horizon))
    profile = Profile("null", assets.prompts, config.data, policy.robot, config.model.action_horizon)
    policies = Policies({profile.name: profile}, lambda name: policy)
    return Subject(policies, config.model.image_size, config.model.action_horizon)


def checkpoint_subject(checkpoint: pathlib.Path) -> Subject:
    """Returns a checkpoint's policy, in JAX.

    Raises:
        FileNotFoundError: it is no checkpoint, or not all of one.
        ValueError: it is not of this version.
    """
    model = contents.read_config(checkpoint).model
    policies = open_policies(Assignment({str(checkpoint): checkpoint}), jax_backend.load)
    return Subject(policies, model.image_size, model.action_horizon)


def measure(
    subject: Subject, num_envs: Sequence[int], num_chunks: int, channels: int = policy_traffic.CHANNELS
) -> list[Row]:
    """Returns a row for each number of environments of one connection, all from one server.

    Args:
        subject: is told PROMPT.
        num_envs: environments; calls are compiled for these.
        num_chunks: new chunks to time, each followed by replies that need none.
        channels: of the images sent, 3 or 4.

    Raises:
        ValueError: a number is below 1, or the channels are neither 3 nor 4.
    """
    if channels not in (3, 4):
        raise ValueError(f"images have 3 channels, RGB, or 4, RGBA as the simulator sends them; got {channels}")
    if min(num_chunks, *num_envs) < 1:
        raise ValueError(f"environments and chunks must be at least 1; got {(*num_envs, num_chunks)}")
    setup = Setup(subject.policies, PromptBook(fixed=PROMPT), batch_sizes=tuple(num_envs))
    replies_per_chunk = min(REPLIES_PER_CHUNK, subject.action_horizon)
    rows = []
    with serving_in_thread(setup) as port, policy_traffic.processes(1) as clients:
        for num in num_envs:
            resize = resize_ms(num, subject.image_size, num_chunks)
            asked = clients.submit(policy_traffic.exchange, port, num, channels, num_chunks, replies_per_chunk)
            rows.append(_row(num, channels, resize, asked.result()))
    return rows


def resize_ms(num_envs: int, image_size: int, num: int) -> list[float]:
    """Returns, `num` times, the ms of bringing RGB images of all cameras and environments to the model's size."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (camera.size, camera.size, 3), np.uint8) for camera in CAMERAS]
    times = []
    for _ in range(num):
        began = time.perf_counter()
        for image in num_envs * images:
            resize_with_pad(image, image_size)
        times.append(1000 * (time.perf_counter() - began))
    return times


def _row(num_envs: int, channels: int, resize: Sequence[float], replies: Sequence[Reply]) -> Row:
    new = [reply for reply in replies if reply.is_new_chunk]
    kept = [reply for reply in replies if not reply.is_new_chunk]
    size = len(protocol.pack(policy_traffic.observation(num_envs, channels=channels)))
    stages = {
        name: _percentile([reply.server_timing[f"{name}_ms"] for reply in new], 50)
        for name in ("decode", "queue_wait", "preprocess", "model", "post")
    }
    without_model = [reply.total_ms - reply.server_timing["model_ms"] for reply in new]
    resize_p50 = _percentile(resize, 50)
    return Row(
        num_envs=num_envs,
        channels=channels,
        message_mib=size / 2**20,
        resize_p50=resize_p50,
        new_chunk_p50=_percentile(without_model, 50),
        new_chunk_p99=_percentile(without_model, 99),
        new_chunk_aim=1.5 * resize_p50 + WITHIN_MS,
        kept_chunk_p50=_percentile([reply.total_ms for reply in kept], 50),
        kept_chunk_p99=_percentile([reply.total_ms for reply in kept], 99),
        **stages,
        round_trip_p50=_percentile([reply.round_trip_ms for reply in new], 50),
        load=os.getloadavg()[0],
    )


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))
