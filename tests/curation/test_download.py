"""What is fetched of a data set, against a hub that is a local folder."""

import pathlib
import shutil
import subprocess
import sys
import types

import pytest
from huggingface_hub import errors

from openpi_b1k.curation import download

COMMIT = "4" * 40
NAMES = {"2025": "b1k_2025", "2026": "lerobot_v30"}
EXTRA = {
    "2025": (
        "videos/task-0001/observation.images.depth.head/episode_00010010.mp4",
        "videos/task-0001/observation.images.seg_instance_id.head/episode_00010010.mp4",
    ),
    "2026": ("annotations/skill_summary.csv", "annotations/task-0000/episode_00000000.json"),
}


class FolderHub:
    """A repository that is a folder, with what is used of huggingface_hub.HfApi."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.asked: list[str] = []
        self.broken: set[str] = set()

    def repo_info(self, repo_id, *, revision, repo_type):
        if repo_id != "org/demos":
            raise errors.RepositoryNotFoundError("no such repository")
        assert (revision, repo_type) == ("main", "dataset")
        return types.SimpleNamespace(sha=COMMIT)

    def list_repo_tree(self, repo_id, path_in_repo, *, recursive, revision, repo_type):
        assert (repo_id, revision, repo_type) == ("org/demos", COMMIT, "dataset")
        folder = self.root / path_in_repo
        if not folder.is_dir():
            raise errors.EntryNotFoundError("no such folder")
        for path in sorted(folder.rglob("*") if recursive else folder.glob("*")):
            name = path.relative_to(self.root).as_posix()
            yield types.SimpleNamespace(path=name, **({"size": path.stat().st_size} if path.is_file() else {}))

    def hf_hub_download(self, repo_id, filename, *, revision, repo_type, local_dir):
        assert (repo_id, revision, repo_type) == ("org/demos", COMMIT, "dataset")
        self.asked.append(filename)
        if filename in self.broken:
            raise OSError("connection lost")
        target = pathlib.Path(local_dir) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / filename, target)
        return str(target)


@pytest.fixture(params=["2025", "2026"])
def generation(request):
    return request.param


@pytest.fixture
def hub(data_dir, tmp_path, generation):
    root = tmp_path / "hub"
    shutil.copytree(data_dir / NAMES[generation], root, ignore=shutil.ignore_patterns("*.npz"))
    for name in EXTRA[generation]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 1000)
    return FolderHub(root)


def planned(hub, tmp_path, **choice):
    return download.plan(hub, ("org/demos", "main"), tmp_path / "copy", **choice)


def paths(plan):
    return {file.path for file in plan.files}


@pytest.mark.parametrize("generation", ["2025"], indirect=True)
def test_tasks_cameras_and_modalities_of_2025(hub, tmp_path):
    plan = planned(hub, tmp_path, tasks=("picking_up_trash",), cameras=("head",))
    numbers = ("00010010", "00010020", "00010030")
    expected = {f"meta/{name}" for name in ("info.json", "tasks.jsonl", "episodes.jsonl", "episodes_stats.jsonl")}
    for number in numbers:
        expected |= {f"data/task-0001/episode_{number}.parquet", f"annotations/task-0001/episode_{number}.json"}
        expected |= {f"meta/episodes/task-0001/episode_{number}.json"}
        expected |= {f"videos/task-0001/observation.images.rgb.head/episode_{number}.mp4"}
    on_hub = {path.relative_to(hub.root).as_posix() for path in hub.root.rglob("*") if path.is_file()}
    assert paths(plan) == expected & on_hub
    assert {"data/task-0001/episode_00010010.parquet", "meta/episodes.jsonl"} <= paths(plan)
    assert any(path.startswith("videos/") for path in paths(plan))
    with_masks = planned(hub, tmp_path, tasks=("picking_up_trash",), cameras=("head",), modalities=("segmentation",))
    videos = {path for path in paths(with_masks) if path.startswith("videos/")}
    assert "videos/task-0001/observation.images.seg_instance_id.head/episode_00010010.mp4" in videos
    assert all("seg_instance_id.head" in path for path in videos)


@pytest.mark.parametrize("generation", ["2026"], indirect=True)
def test_chunks_of_2026_are_tasks(hub, tmp_path):
    plan = planned(hub, tmp_path, tasks=("turning_on_radio",), cameras=("left_wrist",))
    assert paths(plan) == {
        "meta/info.json", "meta/stats.json", "meta/tasks.jsonl", "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet",
        "videos/observation.rgb.left_realsense_link_camera_0/chunk-000/file-000.mp4", *EXTRA["2026"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"holds no files of data, observation.rgb.zed.* for picking_up_trash"):
        planned(hub, tmp_path, tasks=("picking_up_trash",))  # this copy has all in chunk 0


def test_all_tasks_without_other_videos(hub, tmp_path, generation):
    plan = planned(hub, tmp_path, cameras=("head",))
    found = paths(plan)
    on_hub = {path.relative_to(hub.root).as_posix() for path in hub.root.rglob("*") if path.is_file()}
    plain = {path for path in on_hub if path.split("/")[0] in ("meta", "data", "annotations")}
    assert {path for path in found if not path.startswith("videos/")} == plain
    key = {"2025": "observation.images.rgb.head", "2026": "observation.rgb.zed_link_camera_0"}[generation]
    assert {path for path in found if path.startswith("videos/")} == {path for path in on_hub if f"/{key}/" in path}


def test_size_is_known_before_anything_large_is_fetched(hub, tmp_path, generation):
    plan = planned(hub, tmp_path, cameras=("head",))
    assert hub.asked == ["meta/info.json"]
    lines = plan.summary().splitlines()
    assert lines[0] == f"org/demos at {COMMIT} -> {tmp_path / 'copy'}"
    total = sum((hub.root / file.path).stat().st_size for file in plan.files)
    assert lines[-2].split()[0] == "all"
    assert int(lines[-2].split()[1]) == len(plan.files)
    left = int(lines[-1].split()[3])
    assert left == len(plan.files) - 1  # info.json is there
    assert sum(file.size for file in plan.files) == total


def test_fetched_files_are_the_hubs_and_a_cut_off_download_goes_on(hub, tmp_path):
    plan = planned(hub, tmp_path)
    hub.broken = {plan.files[-1].path}
    with pytest.raises(ValueError, match=r"org/demos was not fetched whole: connection lost; run it again to go on"):
        download.fetch(hub, plan, connections=1)
    assert [file.path for file in plan.missing] == [plan.files[-1].path]
    hub.broken = set()
    download.fetch(hub, planned(hub, tmp_path))
    assert not plan.missing
    for file in plan.files:
        assert (tmp_path / "copy" / file.path).read_bytes() == (hub.root / file.path).read_bytes()


def test_a_full_disk_is_told_first(hub, tmp_path, monkeypatch):
    plan = planned(hub, tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    hub.asked.clear()
    with pytest.raises(ValueError, match=r"are to be fetched, but the disk of .* has 10\.0B left: choose fewer tasks"):
        download.fetch(hub, plan)
    assert not hub.asked


def test_refusals(hub, tmp_path, generation):
    with pytest.raises(ValueError, match=r"cannot read org/none at main on the Hugging Face Hub: no such repository"):
        download.plan(hub, ("org/none", "main"), tmp_path / "copy")
    with pytest.raises(ValueError, match=r"no task 'turning_on_radioo' in .*did you mean 'turning_on_radio'"):
        planned(hub, tmp_path, tasks=("turning_on_radioo",))
    if generation == "2026":
        with pytest.raises(ValueError, match=r"org/demos has no segmentation video of camera 'head'; it has obs"):
            planned(hub, tmp_path, modalities=("segmentation",))


def test_script_answers_at_once():
    result = subprocess.run(
        [sys.executable, "scripts/download_dataset.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--modalities" in result.stdout
