"""Rollouts written by lerobot's own writer: what lerobot and our reader get back is what was recorded."""

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.curation.rollouts.gather import Settings
from openpi_b1k.curation.rollouts.importing import import_rollouts
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.video import VideoFrames
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.sources import open_demonstrations
from openpi_b1k.robots.r1pro import CAMERAS, r1pro
from openpi_b1k.sample.world import GOALS
from tests.curation.rollout_cases import play, record

EPISODES = (0, 4, 1)
"""By task."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of what lerobot imports


@pytest.fixture(scope="module", params=["2025", "2026"])
def written(request, tmp_path_factory):
    """Returns (generation, root) of three rollouts, as LeRobot v3.0, without their first two frames."""
    pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs --extra lerobot")
    directory = tmp_path_factory.mktemp("lerobot")
    for episode in EPISODES:
        record(directory / "evaluation", episode, generation=request.param)
    import_rollouts((directory / "evaluation",), directory / "data", Settings(skip_first=2), layout="lerobot")
    return request.param, directory / "data"


def test_lerobot_reads_it(written):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    generation, root = written
    dataset = LeRobotDataset("local/rollouts", root=root, video_backend="pyav")
    row = 0
    for episode in EPISODES:
        environment, observations, actions = play(episode, generation=generation)
        for observation, action in zip(observations[2:], actions[2:], strict=True):
            item = dataset[row]
            np.testing.assert_array_equal(item["action"], action)
            np.testing.assert_array_equal(item["observation.state"], observation["robot_r1::proprio"])
            assert item["task"] == environment.goal.task_name
            row += 1
    assert len(dataset) == row


def test_our_reader_opens_it(written):
    generation, root = written
    source = SourceConfig(root=str(root), generation=generation, validation_episodes=(), prompt_level=1)
    index = open_index(root, source)
    assert index.recordings.tolist() == [0, 1, 10_000]
    columns, annotations = Columns(index, r1pro("like_action")), read_annotations(index)
    columns.ensure()
    for row, episode in enumerate(EPISODES):
        environment, observations, actions = play(episode, generation=generation)
        assert index.task_names[int(index.tasks[row])] == environment.goal.task_name
        assert index.prompts[index.prompt_ids[row]] == annotations.skills.text(row, 1) == environment.goal.prompt
        np.testing.assert_array_equal(columns.episode(row)[1], actions[2:])
        places = zip(index.videos, index.video_ids[row], index.first_frames[row], strict=True)
        for video, path, first in places:
            video_frames = VideoFrames(root / index.video_files[path], index.fps, (video.height, video.width))
            key = next(camera.simulator_name for camera in CAMERAS if camera.name == video.camera)
            for frame in (0, len(actions) - 3):
                (image,) = video_frames.read((int(first) + frame,))
                assert np.abs(image - observations[2 + frame][f"{key}::rgb"][..., :3].astype(int)).mean() < 10
    found = open_demonstrations(source, r1pro("like_action"))
    np.testing.assert_array_equal(found.index.ends, found.index.lengths)
    assert set(index.task_names.values()) == {GOALS[0].task_name, GOALS[1].task_name}
