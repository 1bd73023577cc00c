"""What a copy tells about where it came from, and copies that are refused."""

import dataclasses
import datetime as dt
import json
import re

import numpy as np
import pytest

from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index import revision
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.robots.r1pro import PROPRIO_2026, r1pro
from tests.dataset.dataset_cases import make_config

COMMIT, OTHER = "1" * 40, "2" * 40
OLD = dt.datetime(2026, 7, 20, tzinfo=dt.UTC)
NEW = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)


class Drives:
    """Episodes of a robot that drives towards `headings` in its own frame; velocities in the frame turned by `yaw`."""

    def __init__(self, yaw, speed=0.5):
        self.yaw, self.speed = yaw, speed

    def episode(self, row):
        rng = np.random.default_rng(row)
        headings = rng.uniform(-np.pi, np.pi, 200)
        actions = np.zeros((200, 23), np.float32)
        actions[:, 0], actions[:, 1] = 0.8 * np.cos(headings), 0.8 * np.sin(headings)
        yaw = self.yaw * np.linspace(0, 4 * np.pi, 200)
        proprio = np.zeros((201, 25), np.float32)
        proprio[1:, 0], proprio[1:, 1] = self.speed * np.cos(headings + yaw), self.speed * np.sin(headings + yaw)
        return proprio[:200], actions


def note(root, file, commit, time):
    path = root / f".cache/huggingface/download/{file}.metadata"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{commit}\n{'3' * 40}\n{time.timestamp()}\n")


@pytest.fixture
def copy(copies, monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)
    root = copies("2026")
    return open_index(root, make_config("2026", root).data)


def test_notes_of_the_download_tell_commits_and_times(copy):
    assert revision.read_revision(copy) == revision.Revision((), None)
    assert str(revision.read_revision(copy)) == "an unknown commit"
    note(copy.root, "meta/info.json", COMMIT, NEW)
    note(copy.root, copy.data_files[0], OTHER, OLD)
    found = revision.read_revision(copy)
    assert found == revision.Revision((COMMIT, OTHER), (OLD, NEW))
    assert str(found) == f"{COMMIT}, {OTHER}, fetched 2026-07-20 to 2026-09-01"


def test_git_and_the_hub_cache_tell_the_commit(copy, tmp_path):
    git = copy.root / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{COMMIT}\n")
    assert revision.read_revision(copy).commits == (COMMIT,)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/main\n")
    assert revision.read_revision(copy).commits == (OTHER,)
    (git / "refs/heads/main").write_text(f"{COMMIT}\n")
    assert revision.read_revision(copy).commits == (COMMIT,)
    snapshot = tmp_path / "snapshots" / OTHER
    snapshot.mkdir(parents=True)
    assert revision.read_revision(dataclasses.replace(copy, root=snapshot)).commits == (OTHER,)


def test_a_corrected_copy_is_taken(copy):
    note(copy.root, "meta/stats.json", COMMIT, NEW)
    note(copy.root, copy.data_files[0], COMMIT, NEW)
    revision.refuse_outdated(copy, Drives(yaw=0.0))


def test_files_fetched_before_the_correction_are_refused(copy):
    note(copy.root, "meta/stats.json", COMMIT, NEW)
    note(copy.root, copy.data_files[0], COMMIT, OLD)
    with pytest.raises(
        ValueError, match=r"older than the corrections of 2026-08-24 .*fetched on 2026-07-20\. Download"
    ):
        revision.refuse_outdated(copy, Drives(yaw=0.0))


def test_rows_that_contradict_the_statistics_are_refused(copy):
    path = copy.root / "meta/stats.json"
    path.chmod(0o644)
    stats = json.loads(path.read_text())
    maximum = stats["observation.state"]["max"]
    maximum[PROPRIO_2026.slice("trunk_qvel").start + 1] -= 0.5
    maximum[PROPRIO_2026.slice("trunk_qpos").start] -= 0.5  # was never corrected, so it is no sign
    path.write_text(json.dumps(stats))
    with pytest.raises(ValueError, match=r"values of trunk_qvel lie outside the bounds in .*stats\.json"):
        revision.refuse_outdated(copy, Drives(yaw=0.0))


def test_base_velocities_in_the_worlds_frame_are_warned_of(copy, caplog):
    assert revision.base_concentration(copy, Drives(yaw=0.0)) == pytest.approx(1, abs=1e-6)
    assert revision.base_concentration(copy, Drives(yaw=1.0)) < 0.1
    revision.refuse_outdated(copy, Drives(yaw=0.0))
    assert not caplog.records
    revision.refuse_outdated(copy, Drives(yaw=1.0))
    assert re.search(r"base velocities point anywhere .*concentration of the angles 0\.0\d", caplog.text)


def test_a_robot_that_stands_proves_nothing(copy):
    assert revision.base_concentration(copy, Drives(yaw=1.0, speed=0.0)) is None
    revision.refuse_outdated(copy, Drives(yaw=1.0, speed=0.0))


def test_other_data_are_not_judged(data_dir):
    root = data_dir / "b1k_2025"
    index = open_index(root, make_config("2025", root).data)
    assert not revision.is_2026_release(index)
    revision.refuse_outdated(index, Drives(yaw=1.0))


def test_demonstrations_of_the_sample_world_are_taken(sample_root):
    root = sample_root("2026")
    index = open_index(root, make_config("2026", root).data)
    columns = Columns(index, r1pro("like_action"))
    columns.ensure()
    assert revision.is_2026_release(index)
    revision.refuse_outdated(index, columns)
