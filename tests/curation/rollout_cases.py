"""Rollouts of the sample world's expert, recorded by us and as openpi-comet records them."""

import pathlib
import pickle
import shutil
import zipfile

import numpy as np

from openpi_b1k.robots.r1pro import CAMERAS
from openpi_b1k.rollouts.recordings import Recorder
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.sample.world import Expert

PARTS = ("base", "left", "right")


def play(episode, steps=None, seed=0, generation="2025"):
    """Returns the environment, and its observations and the expert's actions: to the end, or for some steps."""
    environment = SampleEnvironment(generation, seed, episode)
    expert, observations, actions = Expert(environment.world), [], []
    while not environment.world.is_over and len(actions) != steps:
        observations.append(environment.observation())
        actions.append(expert.action())
        environment.step(actions[-1])
    return environment, observations, np.stack(actions)


def record(output_dir, episode, *, rollout_id=0, prompt=None, steps=None, seed=0, generation="2025"):
    """Writes a recording as `closed-loop --record` does: of a success, or of a failure cut off after some steps."""
    environment, observations, actions = play(episode, steps, seed, generation)
    goal, success = environment.goal, environment.world.is_success
    rollout = Rollout(
        task=goal.task_name,
        instance_id=episode,
        rollout_id=rollout_id,
        steps=len(actions),
        success=success,
        q_score=float(success),
        agent_distance=dict.fromkeys(PARTS, 1.0),
        normalized_agent_distance=dict.fromkeys(PARTS, 1.0),
        simulator_steps=len(actions),
        simulator_time=len(actions) / 30,
        normalized_time=1.0,
    )
    directory = output_dir / "recordings" / rollout.stem
    recorder = Recorder(directory, prompt=prompt or goal.prompt, generation=generation)
    for observation, action in zip(observations, actions, strict=True):
        recorder.add(observation, action)
    recorder.close(rollout)
    return directory


def as_comet(recording, experiment, name, *, task=None):
    """Makes of a recording a rollout as openpi-comet's script writes it, and returns its directory."""
    directory = experiment / "rollouts" / name
    directory.mkdir(parents=True)
    for camera in CAMERAS:
        (recording / f"{camera.name}.mp4").rename(directory / f"{camera.name}.mp4")
    with np.load(recording / "columns.npz") as columns:
        value = {"state": list(columns["proprio"]), "action": list(columns["action"])}
    np.savez(directory / "state_action.npz", value)
    shutil.rmtree(recording)
    if task is not None:
        (experiment / "cfg_0.out").write_text(f"env:\n  robot: R1Pro\ntask_name={task}\nheadless=true\n")
    return directory


def write_pickle(path: pathlib.Path, content: bytes) -> pathlib.Path:
    """Writes an npz whose one array of objects is a pickle of one's own."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content)
    return path


def pickled(value) -> bytes:
    """Returns the pickle of the array that holds a value, as `numpy.savez` of NumPy 1 writes it."""
    return pickle.dumps(np.array(value, object), protocol=3)
