"""A policy that counts, observations to tell apart, and a server of both in a thread."""

import contextlib
import threading

import numpy as np
from websockets.sync.client import connect

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.robots.r1pro import ACTION, CAMERAS, r1pro
from openpi_b1k.serving import protocol
from openpi_b1k.serving.assembly import Setup, serving_in_thread
from openpi_b1k.serving.client import Client, Patience
from openpi_b1k.serving.policies import Policies, Profile

HORIZON = 4
PROPRIO_SIZES = {"2025": 256, "2026": 61}
PROMPTS = {"turning_on_radio": "Turn on the radio.", "can_meat": "Can the meat."}  # tasks 0 and 4
ROBOT = r1pro("like_action")


class FakePolicy:
    """Chunks say whom they are for: action t of a chunk is (value of the observation) + t / 100 in every entry."""

    def __init__(self):
        self.batches = []
        """Of each call, the values and the prompts."""
        self.num_prepared = 0
        self.gate = threading.Event()
        """Calls wait for it."""
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """Released at each call's beginning."""

    def resize(self, image):
        return image

    def prepare(self, sample):
        self.num_prepared += 1
        if not np.isfinite(sample["proprio"]).all():
            raise ValueError("state must be finite; base holds NaN or infinity")
        if sample["proprio"].shape[-1] not in PROPRIO_SIZES.values():
            raise ValueError(f"proprio has 256 or 61 entries; got {sample['proprio'].shape[-1]}")
        return {"value": float(sample["proprio"][0]), "prompt": sample["prompt"]}

    def predict(self, inputs):
        self.entered.release()
        assert self.gate.wait(30)
        self.batches.append([(one["value"], one["prompt"]) for one in inputs])
        if any(one["value"] == 666 for one in inputs):
            raise RuntimeError("secret of the inside")
        return np.array([one["value"] for one in inputs])[:, None, None] + np.arange(HORIZON)[None, :, None] / 100

    def finish(self, chunk, inputs):
        del inputs
        return np.broadcast_to(chunk, (HORIZON, ACTION.size)).astype(np.float32)


def expected(value, step):
    return np.full(ACTION.size, value + (step % HORIZON) / 100, np.float32)


def profile(name="fake", prompts=None):
    return Profile(name, PROMPTS if prompts is None else prompts, SourceConfig(), ROBOT, HORIZON)


def policies(policy):
    return Policies({"fake": profile()}, lambda name: policy)


def observation(value=0.0, generation="2025", task=0):
    proprio = np.zeros(PROPRIO_SIZES[generation], np.float32)
    proprio[0] = value
    images = {f"{camera.simulator_name}::rgb": np.full((6, 6, 4), 7, np.uint8) for camera in CAMERAS}
    return {"robot_r1::proprio": proprio, **images, "task_id": np.array([task], np.int64)}


def stacked(*observations):
    return {key: np.stack([one[key] for one in observations]) for key in observations[0]}


@contextlib.contextmanager
def serving(policy, **settings):
    settings = {"policies": policies(policy), "window_s": 0.0, "batch_sizes": (), **settings}
    with serving_in_thread(Setup(**settings)) as port:
        policy.batches.clear()  # the warm-up's
        while policy.entered.acquire(blocking=False):
            pass
        policy.num_prepared = 0
        yield port


@contextlib.contextmanager
def raw_connection(port, **options):
    """A websocket that has been greeted."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options) as connection:
        assert protocol.unpack(connection.recv(10)) is not None
        yield connection


def client(port, **options):
    return Client("127.0.0.1", port, sleep=lambda seconds: None, patience=Patience(query_s=30), **options)
