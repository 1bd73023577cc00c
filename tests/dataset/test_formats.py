"""The meta files of both generations, and what is refused."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.index.tasks import read_tasks
from tests.dataset.dataset_cases import make_config

PROMPT_0 = "Turn on the radio receiver that's on the table in the living room."
EXPECTED = {
    "2025": {
        "numbers": [10, 20, 10010, 10020, 10030],
        "lengths": [260, 130, 505, 250, 121],
        "tasks": [0, 0, 1, 1, 1],
        "first_frames": [[0] * 3] * 5,
        "prompt_1": "Put the three can of soda from the living room inside the tash can in the kitchen.",
        "sizes": [(144, 144), (96, 96), (96, 96)],
        "proprio_size": 256,
    },
    "2026": {
        "numbers": [0, 1, 2, 3, 4, 5],
        "lengths": [37, 52, 41, 37, 52, 41],
        "tasks": [0, 0, 0, 1, 1, 1],
        "first_frames": [[first] * 3 for first in (0, 37, 89, 130, 167, 219)],
        "prompt_1": "Put the three cans of soda from the living room inside the trash can in the kitchen.",
        "sizes": [(96, 96), (64, 64), (64, 64)],
        "proprio_size": 61,
    },
}


def edit_json(path, **changes):
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_lines(path, edit):
    lines = [edit(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line))


def edit_table(path, edit):
    pq.write_table(edit(pq.read_table(path)), path)


def without_files(monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)


def test_index_of_both_generations(generation, root, config):
    index = open_index(root, config.data)
    expected = EXPECTED[generation]
    for name in ("numbers", "lengths", "tasks", "first_frames"):
        np.testing.assert_array_equal(getattr(index, name), expected[name])
    assert index.prompts_by_task() == {"turning_on_radio": (PROMPT_0,), "picking_up_trash": (expected["prompt_1"],)}
    assert [(video.height, video.width) for video in index.videos] == expected["sizes"]
    assert [video.camera for video in index.videos] == ["head", "left_wrist", "right_wrist"]
    assert (index.proprio_size, index.fps, len(index)) == (expected["proprio_size"], 30, sum(expected["lengths"]))


def test_every_sample_has_one_place(root, config):
    index = open_index(root, config.data)
    places = [index.locate(i) for i in range(len(index))]
    assert places == [(row, frame) for row, length in enumerate(index.lengths) for frame in range(length)]
    for i in (-1, len(index)):
        with pytest.raises(IndexError, match=rf"sample {i} is outside \[0, {len(index)}\)"):
            index.locate(i)


def test_tasks_are_chosen_by_name(root, config):
    whole = open_index(root, config.data)
    index = open_index(root, dataclasses.replace(config.data, tasks=("picking_up_trash",)))
    assert set(index.tasks) == {1}
    assert list(index.prompts_by_task()) == ["picking_up_trash"]
    rows = np.flatnonzero(whole.tasks == 1)
    np.testing.assert_array_equal(index.numbers, whole.numbers[rows])
    np.testing.assert_array_equal(index.first_frames, whole.first_frames[rows])
    assert [index.video_files[i] for i in index.video_ids.flat] == [
        whole.video_files[i] for i in whole.video_ids[rows].flat
    ]
    assert index.fingerprint != whole.fingerprint


def test_unknown_tasks_are_refused(root, config):
    with pytest.raises(ValueError, match=r"no task 'picking_up_trsh' in .*meta; did you mean 'picking_up_trash'"):
        open_index(root, dataclasses.replace(config.data, tasks=("turning_on_radio", "picking_up_trsh")))
    with pytest.raises(ValueError, match=r"no task 'xyz' in .*meta; known tasks: turning_on_radio, picking_up_trash"):
        open_index(root, dataclasses.replace(config.data, tasks=("xyz",)))


def test_a_listed_task_without_episodes_is_refused(data_dir):
    data = make_config("2025", None, tasks=("freeze_pies",)).data
    with pytest.raises(
        ValueError, match=r"no episodes of freeze_pies in .*; it has turning_on_radio, picking_up_trash"
    ):
        open_index(data_dir / "b1k_2025", data)


def test_the_other_generation_is_refused(data_dir):
    message = (
        r"of the 2025 challenge \(LeRobot v2.1\), but the config says 2026: use recipe pi05_b1k, or give --data.gen"
    )
    with pytest.raises(ValueError, match=message):
        open_index(data_dir / "b1k_2025", make_config("2026", None).data)
    with pytest.raises(ValueError, match=r"of the 2026 challenge \(LeRobot v3.0\).*pi05_b1k_2026, or give --data.gen"):
        open_index(data_dir / "lerobot_v30", make_config("2025", None).data)


def test_an_unknown_version_is_refused(copies):
    root = copies("2025")
    edit_json(root / "meta/info.json", codebase_version="v2.0")
    with pytest.raises(ValueError, match=r"codebase_version 'v2.0'; this reader knows v2.1 \(2025\) or v3.0 \(2026\)"):
        open_index(root, make_config("2025", None).data)
    (root / "meta/info.json").write_text('{"codebase_')
    with pytest.raises(ValueError, match=r"info\.json is not JSON: .*; download it again"):
        open_index(root, make_config("2025", None).data)


def test_missing_meta_files_are_refused(copies, generation, tmp_path):
    config = make_config(generation, None)
    with pytest.raises(FileNotFoundError, match=r"info.json; --data.root must be the directory that holds meta/"):
        open_index(tmp_path / "nowhere", config.data)
    root = copies(generation)
    with pytest.raises(FileNotFoundError, match=r"task turning_on_radio is listed in .* is missing; .*--data.tasks"):
        open_index(root, config.data)
    for path in (root / "meta/episodes").rglob("*.parquet"):
        path.unlink()
    (root / "meta/episodes.jsonl").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no episode (list|tables) at"):
        open_index(root, config.data)
    for path in (root / "meta").glob("tasks.*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no task list at .*tasks.jsonl; .*prompts"):
        open_index(root, config.data)


def test_a_missing_prompt_is_refused(copies, monkeypatch):
    without_files(monkeypatch)
    root = copies("2025")
    config = make_config("2025", None).data
    edit_lines(root / "meta/tasks.jsonl", lambda line: line | {"task": f"listed {line['task_index']}"})
    assert open_index(root, config).prompts_by_task()["picking_up_trash"] == (EXPECTED["2025"]["prompt_1"],)
    edit_lines(
        root / "meta/episodes.jsonl", lambda line: line | ({"tasks": []} if line["episode_index"] == 10010 else {})
    )
    prompts = open_index(root, config).prompts_by_task()  # tasks.jsonl, where an episode has none
    assert prompts["picking_up_trash"] == (EXPECTED["2025"]["prompt_1"], "listed 1")
    edit_lines(root / "meta/episodes.jsonl", lambda line: line | {"tasks": []})
    edit_lines(root / "meta/tasks.jsonl", lambda line: line | {"task": " "})
    with pytest.raises(ValueError, match=r"task 'turning_on_radio' has no prompt .*; give its line in .*tasks.jsonl"):
        open_index(root, config)


def test_2026_prompts_come_from_tasks_jsonl_alone(copies, monkeypatch):
    without_files(monkeypatch)
    root = copies("2026")
    config = make_config("2026", None).data
    edit_lines(root / "meta/tasks.jsonl", lambda line: line | ({"task": ""} if line["task_index"] else {}))
    with pytest.raises(ValueError, match=r"task 'picking_up_trash' has no prompt"):
        open_index(root, config)
    open_index(root, dataclasses.replace(config, tasks=("turning_on_radio",)))
    edit_lines(root / "meta/tasks.jsonl", lambda line: None if line["task_index"] else line)
    with pytest.raises(ValueError, match=r"belongs to task 1, which meta/tasks.jsonl does not list"):
        open_index(root, config)


def test_2026_task_column_wins_over_names(copies, monkeypatch):
    without_files(monkeypatch)
    root = copies("2026")
    column = pa.array([1, 1, 1, 0, 0, 0])
    edit_table(
        root / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.append_column("task_index", column)
    )
    assert open_index(root, make_config("2026", None).data).tasks.tolist() == [1, 1, 1, 0, 0, 0]


def test_2026_episodes_of_several_tables_are_ordered_by_number(copies, monkeypatch):
    without_files(monkeypatch)
    root = copies("2026")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    (root / "meta/episodes/chunk-001").mkdir()
    pq.write_table(table.slice(0, 2), root / "meta/episodes/chunk-001/file-000.parquet")
    pq.write_table(table.slice(2), path)
    assert open_index(root, make_config("2026", None).data).lengths.tolist() == EXPECTED["2026"]["lengths"]
    edit_table(path, lambda table: table.drop_columns(["length", "data/file_index"]))
    with pytest.raises(ValueError, match=r"lacks the columns length, data/file_index; it is no v3.0 episode table"):
        open_index(root, make_config("2026", None).data)


def test_totals_of_info_json_are_not_believed(copies, generation, monkeypatch):
    without_files(monkeypatch)
    root = copies(generation)
    edit_json(root / "meta/info.json", total_frames=7, total_episodes=1)
    assert len(open_index(root, make_config(generation, None).data)) == sum(EXPECTED[generation]["lengths"])


def test_a_camera_that_is_not_there_is_refused(copies, generation, monkeypatch):
    without_files(monkeypatch)
    root = copies(generation)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    key = next(key for key in features if key.endswith(("rgb.left_wrist", "rgb.left_realsense_link_camera_0")))
    edit_json(root / "meta/info.json", features={name: value for name, value in features.items() if name != key})
    config = make_config(generation, None).data
    with pytest.raises(ValueError, match=r"no video of camera 'left_wrist'; it has .*: see --data.cameras"):
        open_index(root, config)
    index = open_index(root, dataclasses.replace(config, cameras=("right_wrist", "head")))
    assert [video.camera for video in index.videos] == ["right_wrist", "head"]


def test_fingerprint_follows_the_content_not_the_place(root, config, copies, generation, monkeypatch):
    without_files(monkeypatch)
    copy = copies(generation)
    original = open_index(root, config.data).fingerprint
    assert open_index(copy, config.data).fingerprint == original
    name = "stats.json" if generation == "2026" else "episodes_stats.jsonl"
    (copy / "meta" / name).write_text("{}")  # corrected data come with new statistics
    assert open_index(copy, config.data).fingerprint != original


def test_task_lists_are_checked(tmp_path):
    path = tmp_path / "tasks.jsonl"
    for text, message in (
        ('{"task_index": 0}', r"tasks.jsonl:1 lacks task_name; it has task_index"),
        ('{"task_index": 0, "task_name": "a"}\n\n{"task_index": 0, "task_name": "b"}', r":3 repeats task 0 or 'b'"),
        ('{"task_index": 0, "task_name": "a"}\n{"task_index": 1, "task_name": "a"}', r":2 repeats task 1 or 'a'"),
        ("[1]", r":1 must be a JSON object; got \[1\]"),
        ("{", r":1 is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_tasks(path)
