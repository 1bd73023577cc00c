"""Data sets that are not a challenge's release: rollouts of openpi-comet, plain LeRobot, other robots; modalities."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi_b1k.data.index.formats import open_index
from tests.dataset.dataset_cases import make_config

CAMERA_KEYS = {
    "observation.rgb.zed_link_camera_0": "observation.images.head",
    "observation.rgb.left_realsense_link_camera_0": "observation.images.left_wrist",
    "observation.rgb.right_realsense_link_camera_0": "observation.images.right_wrist",
}
TEXTS = ["Turn on the radio.", "Pick up the trash."]


@pytest.fixture(autouse=True)
def _without_videos(monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)


def edit_info(root, edit):
    path = root / "meta/info.json"
    path.chmod(0o644)
    info = json.loads(path.read_text())
    path.write_text(json.dumps(edit(info) or info))


def plain_lerobot(root, texts=TEXTS):
    """Makes the 2026 fixture a data set as LeRobot itself writes it: other camera keys, task texts, no tasks.jsonl."""

    def rename(text):
        for theirs, plain in CAMERA_KEYS.items():
            text = text.replace(theirs, plain)
        return text

    edit_info(root, lambda info: json.loads(rename(json.dumps(info))))
    edit_info(root, lambda info: info.update(robot_type="r1_pro"))
    (root / "meta/tasks.jsonl").unlink()
    pq.write_table(
        pa.table({"task_index": np.arange(2), "__index_level_0__": pa.array(texts)}), root / "meta/tasks.parquet"
    )
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    names = [rename(name) for name in table.column_names]
    table = table.rename_columns(names)
    told = pa.array([[texts[i // 3]] for i in range(6)])
    pq.write_table(table.set_column(names.index("tasks"), "tasks", told), path)
    return root


def test_first_rows_are_where_the_parquet_files_have_them(root, config):
    """Read from the files themselves: the runs of episode_index."""
    index = open_index(root, config.data)
    for row in range(len(index.numbers)):
        numbers = pq.read_table(root / index.data_files[index.data_ids[row]], columns=["episode_index"])
        run = np.flatnonzero(numbers["episode_index"].to_numpy() == index.numbers[row])
        assert (index.first_rows[row], index.lengths[row]) == (run[0], len(run))
        assert run[-1] - run[0] == len(run) - 1


def test_first_rows_count_from_the_files_beginning(copies):
    """The third episode begins a file of its own, as the release does every 230,000 rows."""
    root = copies("2026")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("data/file_index")
    pq.write_table(table.set_column(at, "data/file_index", pa.array([0, 0, 1, 1, 1, 1])), path)
    index = open_index(root, make_config("2026", root).data)
    assert index.first_rows.tolist() == [0, 37, 0, 41, 78, 130]
    assert index.take(np.array([3, 4])).first_rows.tolist() == [41, 78]


def test_rollouts_of_comet(copies):
    """Written by its generate_rft_meta: totals from the template, no cam_rel_poses, H.264 under another name."""
    root = copies("2025")
    expected = open_index(root, make_config("2025", root).data)

    def rollouts(info):
        info.update(total_frames=5 * 9999, total_videos=45)
        del info["features"]["observation.cam_rel_poses"]

    edit_info(root, rollouts)
    for path in root.glob("data/**/*.parquet"):
        path.chmod(0o644)
        pq.write_table(pq.read_table(path).drop_columns(["observation.cam_rel_poses"]), path)
    index = open_index(root, make_config("2025", root).data)
    for name in ("numbers", "lengths", "tasks", "first_rows", "recordings", "positions"):
        np.testing.assert_array_equal(getattr(index, name), getattr(expected, name))
    assert len(index) == 1266


def test_plain_lerobot(copies):
    root = plain_lerobot(copies("2026"))
    index = open_index(root, make_config("2026", root).data)
    assert [video.key for video in index.videos] == list(CAMERA_KEYS.values())
    assert index.prompts_by_task() == {text: (text,) for text in TEXTS}
    assert index.lengths.tolist() == [37, 52, 41, 37, 52, 41]
    assert set(index.recordings) == {-1}  # nothing names an annotation
    chosen = open_index(root, make_config("2026", root, tasks=(TEXTS[1],)).data)
    assert chosen.numbers.tolist() == [3, 4, 5]


def test_names_instead_of_sentences_are_refused(copies):
    root = plain_lerobot(copies("2026"), ["turning_on_radio", "picking_up_trash"])
    with pytest.raises(ValueError, match=r"tasks.parquet holds task names \(turning_on_radio, .*before 2026-07-27"):
        open_index(root, make_config("2026", root).data)


def test_several_tasks_in_an_episode_are_refused(copies):
    root = plain_lerobot(copies("2026"))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    told = pa.array([TEXTS, *[[TEXTS[0]]] * 5])
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", told), path)
    with pytest.raises(ValueError, match=r"episode 0 of .* has the tasks \['Turn.*one task per episode"):
        open_index(root, make_config("2026", root).data)


def test_an_unknown_robot_is_refused(copies, generation):
    root = copies(generation)
    config = make_config(generation, root).data
    edit_info(root, lambda info: info.update(robot_type="so100"))
    with pytest.raises(
        ValueError, match=r"robot 'so100', which has no table in openpi_b1k/robots; known robots: R1Pro"
    ):
        open_index(root, config)
    edit_info(root, lambda info: info.update(robot_type=None))
    open_index(root, config)
    edit_info(root, lambda info: info["features"]["action"].update(shape=[7]))
    with pytest.raises(ValueError, match=r"action of .* has shape \[7\]; that of R1Pro has 23 entries"):
        open_index(root, config)


def test_an_unknown_state_is_refused(copies, generation):
    root = copies(generation)
    edit_info(root, lambda info: info["features"]["observation.state"].update(shape=[14]))
    with pytest.raises(ValueError, match=r"observation.state of .* has shape \[14\]; .* 256 or 61 or 25 entries"):
        open_index(root, make_config(generation, root).data)


def test_the_state_tells_the_generation(copies):
    """Demonstrations of 2025 in LeRobot v3.0, as LeRobot's own converter makes them, are still those of 2025."""
    root = copies("2026")
    edit_info(root, lambda info: info["features"]["observation.state"].update(shape=[256]))
    assert open_index(root, make_config("2025", root).data).proprio_size == 256
    with pytest.raises(ValueError, match=r"data of the 2025 challenge \(LeRobot v3.0\), but the config says 2026"):
        open_index(root, make_config("2026", root).data)


def test_extra_modalities_come_after_the_cameras(copies):
    root = copies("2025")
    source = dataclasses.replace(
        make_config("2025", root).data,
        cameras=("right_wrist", "head"),
        modalities=("segmentation", "rgb", "depth"),
    )
    index = open_index(root, source)
    assert [(video.camera, video.modality, video.key, video.height) for video in index.videos] == [
        ("right_wrist", "rgb", "observation.images.rgb.right_wrist", 96),
        ("head", "rgb", "observation.images.rgb.head", 144),
        ("head", "depth", "observation.images.depth.head", 144),
        ("head", "segmentation", "observation.images.seg_instance_id.head", 144),
    ]
    assert index.video_ids.shape == index.first_frames.shape == (5, 4)
    assert index.video_files[index.video_ids[1, 2]] == (
        "videos/task-0000/observation.images.depth.head/episode_00000020.mp4"
    )


def test_missing_modalities_are_refused(copies):
    root = copies("2026")
    for modality in ("depth", "segmentation"):
        source = dataclasses.replace(make_config("2026", root).data, modalities=("rgb", modality))
        with pytest.raises(
            ValueError, match=rf"no {modality} video of camera 'head'; .* leave {modality} out of --data"
        ):
            open_index(root, source)


def test_a_feature_that_is_no_video_is_refused(copies):
    root = copies("2026")
    edit_info(root, lambda info: info["features"]["observation.rgb.zed_link_camera_0"].update(dtype="image"))
    with pytest.raises(ValueError, match=r"zed_link_camera_0 of .* must be a video with a height and a width"):
        open_index(root, make_config("2026", root).data)


def test_repeated_and_empty_episodes_are_refused(copies):
    root = copies("2025")
    path = root / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.chmod(0o644)
    path.write_text("\n".join([*lines, lines[1]]))
    config = make_config("2025", root).data
    with pytest.raises(ValueError, match=r"list episode 20 more than once; download meta/ again"):
        open_index(root, config)
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"length": 0}), *lines[1:]]))
    with pytest.raises(ValueError, match=r"episode 10 of .* has length 0"):
        open_index(root, config)
    path.write_text('{"episode_index": 10}')
    with pytest.raises(ValueError, match=r"episodes.jsonl:1 lacks length; it has episode_index"):
        open_index(root, config)
