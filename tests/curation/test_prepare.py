"""Preparing whole data sets: what the same reader finds in the copy, and going on after an interruption."""

import json

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.curation import audit, marker, prepare
from openpi_b1k.curation.recode import Settings
from openpi_b1k.data.frames.pictures import Pictures
from openpi_b1k.data.frames.video import VideoFrames, key_frame_distance
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.index.revision import read_revision
from openpi_b1k.data.shards import Shard, parse_shard
from openpi_b1k.transforms.images import resize_with_pad
from tests.curation.conftest import NAMES

SMALL = Settings(image_size=48)
LUMA = np.array([0.299, 0.587, 0.114])  # sharp colours do not survive a quarter of the chroma
ONE_TASK = {"2025": ("turning_on_radio",), "2026": ()}


def image(index, row, v, frame):
    video = index.videos[v]
    path = index.root / index.video_files[index.video_ids[row, v]]
    frames = VideoFrames(path, index.fps, (video.height, video.width))
    return frames.read([int(index.first_frames[row, v]) + frame])[0]


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_the_same_reader_finds_the_same_frames_and_rows(data_dir, tmp_path, generation):
    source, target = data_dir / NAMES[generation], tmp_path / "prepared"
    work = prepare.plan(source, target, SMALL, ONE_TASK[generation], modalities=("rgb",))
    report = prepare.run(work, Shard(), 0)
    assert report.is_complete
    assert not report.failures
    config = SourceConfig(generation=generation, tasks=ONE_TASK[generation])
    before, after = open_index(source, config), open_index(target, config)
    assert len(before) == len(after)
    assert {(video.height, video.width) for video in after.videos} == {(48, 48)}
    for row in (0, len(before.lengths) - 1):
        for frame in (0, 7, int(before.lengths[row]) - 1):
            for v in range(3):
                shown = resize_with_pad(image(before, row, v, frame), 48) @ LUMA
                errors = [np.abs(image(after, row, v, near) @ LUMA - shown).mean() for near in (frame, abs(frame - 1))]
                assert errors[0] < 5
                assert errors[0] < errors[1]
    for name in {after.data_files[i] for i in after.data_ids}:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert key_frame_distance(after) == 8
    report = audit.run(target, ONE_TASK[generation], "all", Shard(), 0)
    assert not {finding.kind for finding in report.findings} & {"corrupt file", "length mismatch", "other image size"}
    info = json.loads((target / "meta/info.json").read_text())
    videos = {key: feature for key, feature in info["features"].items() if feature["dtype"] == "video"}
    assert len(videos) == 3
    assert {feature["info"]["video.codec"] for feature in videos.values()} == {"h264"}
    assert marker.read(target)["source_digest"] == before.meta_digest[:32]
    assert marker.read(target)["settings"] == {"image_size": 48, "key_frame_distance": 8, "crf": 20}
    lines = (target / marker.RECORDS / "0-of-1.jsonl").read_text().splitlines()
    assert len(lines) == len(work.jobs)
    assert all(json.loads(line)["psnr"] > 20 for line in lines)


def test_shards_share_the_work_and_the_last_one_opens_the_data_set(data_dir, tmp_path):
    source, target = data_dir / NAMES["2026"], tmp_path / "prepared"
    work = prepare.plan(source, target, SMALL)
    reports = [prepare.run(work, Shard(i, 3), 0) for i in range(3)]
    assert [report.is_complete for report in reports] == [False, False, True]
    assert sorted(result.name for report in reports for result in report.results) == sorted(j.name for j in work.jobs)
    again = prepare.run(work, Shard(), 0)
    assert not again.results
    assert again.is_complete


def test_a_data_set_that_is_not_complete_cannot_be_opened(data_dir, tmp_path):
    work = prepare.plan(data_dir / NAMES["2026"], tmp_path / "prepared", SMALL)
    prepare.run(work, Shard(0, 2), 0)
    with pytest.raises(FileNotFoundError, match=r"no .*info.json"):
        open_index(tmp_path / "prepared", SourceConfig(generation="2026"))


def test_a_second_start_writes_what_is_missing(copies, tmp_path):
    source, target = copies("2026"), tmp_path / "prepared"
    damaged = source / "videos/observation.rgb.zed_link_camera_0/chunk-000/file-000.mp4"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    work = prepare.plan(source, target, SMALL)
    report = prepare.run(work, Shard(), 0)
    assert not report.is_complete
    assert [name for name, _ in report.failures] == [str(damaged.relative_to(source))]
    assert "is cut off" in report.failures[0][1]
    assert "1 videos failed" in prepare.summary(report)
    damaged.write_bytes(whole)
    report = prepare.run(work, Shard(), 0)
    assert report.is_complete
    assert len(report.results) == 1
    assert not list(target.rglob("*.partial*"))


def test_depth_and_segmentation_added_later_are_what_the_reader_saw_before(data_dir, tmp_path):
    source, target = data_dir / NAMES["2025"], tmp_path / "prepared"
    task = ONE_TASK["2025"]
    prepare.run(prepare.plan(source, target, SMALL, task, ("head",), ("rgb",)), Shard(), 0)
    work = prepare.plan(source, target, SMALL, task, ("head",), ("depth", "segmentation"))
    assert len(work.jobs) == 4
    assert prepare.run(work, Shard(), 0).is_complete
    keys = [f"observation.images.{name}.head" for name in ("depth", "rgb", "seg_instance_id")]
    assert marker.read(target)["videos"] == keys
    config = SourceConfig(generation="2025", tasks=task, cameras=("head",), modalities=("rgb", "depth", "segmentation"))
    before, after = open_index(source, config), open_index(target, config)
    views = [pictures(index, frames=(0, 77, 259)) for index in (before, after)]
    for modality in ("depth", "segmentation"):
        for old, new in zip(*(view[modality] for view in views), strict=True):
            np.testing.assert_array_equal(new, old[1::3, 1::3])


def pictures(index, frames):
    """Returns depth in metres and palette positions of the first episode, as training reads them."""
    maker = Pictures(index, None)
    found = {"depth": [], "segmentation": []}
    for place, video in enumerate(index.videos[1:], 1):
        path = index.root / index.video_files[index.video_ids[0, place]]
        for _, frame in VideoFrames(path, index.fps, (video.height, video.width)).decoded(frames):
            found[video.modality].append(maker.make(0, place, frame, path).array())
    return found


def test_only_the_chosen_tasks_files_are_copied(data_dir, tmp_path):
    work = prepare.plan(data_dir / NAMES["2025"], tmp_path / "prepared", SMALL, ("picking_up_trash",))
    assert {name.split("/")[1] for name in work.copies if not name.startswith("meta")} == {"task-0001"}
    assert "meta/episodes.jsonl" in work.copies
    assert "meta/info.json" not in work.copies
    assert not [name for name in work.copies if name.startswith("meta/episodes/task-0000")]


def test_the_notes_of_the_download_come_along(copies, tmp_path):
    source, target = copies("2026"), tmp_path / "prepared"
    note = ".cache/huggingface/download/meta/info.json.metadata"
    (source / note).parent.mkdir(parents=True)
    (source / note).write_text(f"{'ab' * 20}\netag\n1790000000.0\n")
    prepare.run(prepare.plan(source, target, SMALL, cameras=("head",)), Shard(), 0)
    assert marker.read(target)["source_revision"].startswith("ab" * 20)
    assert read_revision(open_index(target, SourceConfig(generation="2026", cameras=("head",)))).commits == ("ab" * 20,)


def test_the_estimate_counts_every_frame_and_the_disk_is_asked(data_dir, tmp_path, monkeypatch):
    work = prepare.plan(data_dir / NAMES["2026"], tmp_path / "prepared", SMALL)
    expected = prepare.estimate(work)
    assert expected.num_frames == 3 * 260
    prepare.run(work, Shard(), 0)
    written = sum(path.stat().st_size for path in (tmp_path / "prepared").rglob("*.*") if path.is_file())
    assert 0.4 < expected.target_bytes / written < 2.5
    assert "780 video frames" in str(expected)
    work = prepare.plan(data_dir / NAMES["2026"], tmp_path / "elsewhere", SMALL)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"elsewhere needs about .* GB more, its disk has 1e-07 GB free"):
        prepare.check_space(work, expected)


def test_targets_that_cannot_be_are_refused(data_dir, tmp_path):
    source = data_dir / NAMES["2026"]
    with pytest.raises(ValueError, match="cannot be prepared in its own place"):
        prepare.plan(source, source, SMALL)
    work = prepare.plan(source, tmp_path / "prepared", SMALL)
    prepare.run(work, Shard(0, 2), 0)
    other = prepare.plan(source, tmp_path / "prepared", Settings(image_size=64))
    with pytest.raises(ValueError, match=r"was begun with settings .*'image_size': 48.*, now it is .*'image_size': 64"):
        prepare.run(other, Shard(), 0)
    (tmp_path / "foreign/meta").mkdir(parents=True)
    (tmp_path / "foreign/meta/info.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a data set that is no prepared one"):
        prepare.run(prepare.plan(source, tmp_path / "foreign", SMALL), Shard(), 0)


def test_shards_are_read_and_refused():
    assert parse_shard("3/8") == Shard(3, 8)
    assert Shard(1, 3).take(list("abcdefg")) == ["b", "e"]
    with pytest.raises(ValueError, match="got 8/8: is the Slurm array counted from 0"):
        parse_shard("8/8")
    with pytest.raises(ValueError, match="a shard is I/N, such as 0/8; got '-1/8'"):
        parse_shard("-1/8")
