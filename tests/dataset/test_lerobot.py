"""The sample data set of 2026 in lerobot's own reader: what it returns is what we return, at 200 random indices.

Needs the extra lerobot: `uv run --extra lerobot pytest -m slow tests/dataset/test_lerobot.py`.
"""

import importlib.metadata

import numpy as np
import pytest

from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.prompts import open_prompts
from openpi_b1k.data.sources import open_demonstrations
from openpi_b1k.robots.r1pro import PROPRIO_2026, PROPRIO_IN_USE, r1pro

HORIZON = 25
NUM_INDICES = 200


@pytest.fixture
def ours(sample_root) -> B1kDataset:
    """Returns every frame of every episode, images as stored."""
    root = str(sample_root("2026"))
    source = DataConfig(generation="2026", root=root, trim_idle=False, validation_episodes=())
    found = open_demonstrations(source, r1pro("like_action"))
    prompts = open_prompts(found.index, 0, found.annotations)
    return B1kDataset(found.index, found.columns, EpisodeFrames(found.index), found.skills, prompts, HORIZON)


@pytest.fixture
def theirs(ours):
    """Returns lerobot's dataset of the same files; its steps are asked for by time."""
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs --extra lerobot")
    steps = {"action": [i / ours.index.fps for i in range(HORIZON)]}
    return lerobot.LeRobotDataset("local/sample", root=ours.index.root, delta_timestamps=steps, video_backend="pyav")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lerobot decodes through a deprecated module
def test_lerobot_returns_the_same_samples(ours, theirs):
    assert importlib.metadata.version("lerobot").startswith("0.4.")
    assert len(ours) == len(theirs)
    indices = np.random.default_rng(0).choice(len(ours), NUM_INDICES, replace=len(ours) < NUM_INDICES)
    ends = ours.index.starts[1:] - 1  # random ones hardly meet an episode's end, where padding begins
    padded = 0
    for i in [*indices.tolist(), *ends.tolist()]:
        one, other = ours[i], theirs[i]
        assert (one["episode"], one["frame"], one["task"]) == tuple(
            int(other[name]) for name in ("episode_index", "frame_index", "task_index")
        )
        assert ours.index.task_names[one["task"]] == other["task"]
        for field in PROPRIO_IN_USE.names:
            np.testing.assert_array_equal(
                one["proprio"][PROPRIO_IN_USE.slice(field)],
                other["observation.state"].numpy()[PROPRIO_2026.slice(field)],
                err_msg=field,
            )
        np.testing.assert_array_equal(one["actions"], other["action"].numpy())
        np.testing.assert_array_equal(one["is_pad"], other["action_is_pad"].numpy())
        padded += int(one["is_pad"].any())
        for video in ours.index.videos:
            image = other[video.key].numpy().transpose(1, 2, 0) * 255  # float32 in [0, 1]
            np.testing.assert_array_equal(one["images"][video.camera], np.rint(image).astype(np.uint8))
    assert padded >= len(ends)
