import json
import pickle

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.index.orchestrators import orchestrator_folder, read_subtasks
from openpi_b1k.data.prompts import open_prompts
from tests.dataset.annotation_cases import make_index, write_annotation


def write_subtasks(root, recording, subtasks, listed=None):
    folder = root / orchestrator_folder(recording)
    folder.mkdir(parents=True)
    count = len(subtasks) if listed is None else listed
    content = {"cot_task_description": "a", "cot_subtask_description_list": ["x"] * count}
    (folder / "task_annotated.json").write_text(json.dumps(content))
    for i, (text, start, end) in enumerate(subtasks):
        content = {"cot_subtask_description": text, "skill_description": "b", "start_frame": start, "end_frame": end}
        (folder / f"subtask_{i}_annotated.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def index(tmp_path):
    write_annotation(tmp_path, 10)
    write_annotation(tmp_path, 20, [("press", [10, 90], [["button_3"]])])
    write_subtasks(tmp_path, 10, [("Go there.", 0, 30), ("Push it.", 40, 100)])
    write_subtasks(tmp_path, 20, [(f"Part {i}.", i * 9, i * 9 + 9) for i in range(11)])
    return make_index(tmp_path, {10: 100, 20: 100})


@pytest.fixture
def annotations(index):
    return read_annotations(index)


def test_level_0_is_the_tasks_sentence(index, annotations):
    prompts = open_prompts(index, 0, annotations)
    assert [prompts(row, frame) for row in (0, 1) for frame in (0, 99)] == ["Do task 0."] * 4
    assert prompts.wordings() == {"task_0": ("Do task 0.",)}


def test_level_1_is_the_skill_with_its_objects(index, annotations):
    prompts = open_prompts(index, 1, annotations)
    assert [prompts(0, frame) for frame in (0, 39, 40, 99)] == ["move to radio"] * 2 + ["press radio"] * 2
    assert prompts(1, 0) == prompts(1, 99) == "press button"
    assert prompts.wordings() == {"task_0": ("press button", "press radio", "move to radio")}  # 100, 60, 40 frames


def test_level_2_is_the_subtask(index, annotations):
    prompts = open_prompts(index, 2, annotations)
    assert [prompts(0, frame) for frame in (29, 30, 39, 40, 99)] == ["Go there."] + ["Push it."] * 4
    # numbers are ordered as numbers, the last frame belongs to the last subtask
    assert [prompts(1, frame) for frame in (0, 8, 9, 90, 99)] == [
        "Part 0.",
        "Part 0.",
        "Part 1.",
        "Part 10.",
        "Part 10.",
    ]


def test_prompts_follow_a_choice_of_episodes(index, annotations):
    prompts = open_prompts(index.take(np.array([1])), 1, annotations)
    assert prompts(0, 5) == "press button"
    assert prompts.wordings() == {"task_0": ("press button",)}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_workers_say_the_same(index, annotations, level):
    prompts = open_prompts(index, level, annotations)
    sent = pickle.loads(pickle.dumps(prompts))
    assert [sent(0, frame) for frame in range(100)] == [prompts(0, frame) for frame in range(100)]


def test_the_release_layout_gives_level_1(data_dir):
    root = data_dir / "b1k_2025"
    index = open_index(root, SourceConfig(root=str(root)))
    prompts = open_prompts(index, 1, read_annotations(index))
    assert prompts(0, 0) == "move to radio"
    assert prompts(2, 230) == "move to trash can"  # frames 227 ... 238 are a gap, so the next skill's
    assert prompts(2, 504) == "place can of soda in trash can"
    assert set(prompts.wordings()) == {"turning_on_radio", "picking_up_trash"}


@pytest.mark.parametrize("name", ["2025", "2026"])
def test_both_generations_find_their_annotations(sample_root, name):
    root = sample_root(name)
    index = open_index(root, SourceConfig(root=str(root), generation=name))
    annotations = read_annotations(index)
    assert annotations.has_file.all()
    assert annotations.durations.tolist() == index.lengths.tolist()  # each has its own
    prompts = open_prompts(index, 1, annotations)
    for row in range(len(index.numbers)):
        first, last = prompts(row, 0), prompts(row, int(index.lengths[row]) - 1)
        button = index.prompts[index.prompt_ids[row]].split("Press the ")[-1].split(" button")[0]
        assert (first, last) == (f"move to {button} button", f"press {button} button")


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (
            1,
            r"--data.prompt-level 1 needs skills, which are in annotations/; 2 of 3 chosen episodes of .* have none "
            r"\(such as annotations/task-0000/episode_00000030.json\): task_0 \(30\), task_1 \(10010\). Copy them "
            r"there \(scripts/download_dataset.py\), choose other episodes .* or give --data.prompt-level 0",
        ),
        (
            2,
            r"--data.prompt-level 2 needs subtasks, .* no part of the public data sets; 2 of 3 chosen episodes .* "
            r"\(such as orchestrators/task-0000/episode_00000030\): task_0 \(30\), task_1 \(10010\)",
        ),
    ],
)
def test_a_level_that_some_episodes_lack_is_refused(index, level, message):
    larger = make_index(index.root, {10: 100, 30: 100, 10010: 100})
    with pytest.raises(ValueError, match=message):
        open_prompts(larger, level, read_annotations(larger))


def test_episodes_that_cannot_be_told_apart_say_why(index, annotations):
    index.recordings[:] = -1
    with pytest.raises(ValueError, match="its meta files have no raw_episode_id to find them by"):
        open_prompts(index, 1, read_annotations(index))


@pytest.mark.parametrize(
    ("subtasks", "listed", "message"),
    [
        ([("a", 0, 9)], 2, r"lists 2 subtasks, but has 1 files of them; copy it again"),
        (
            [("a", 9, 9)],
            None,
            r"subtask_0_annotated.json must have a text and 0 <= start_frame < end_frame; got 'a', 9, 9",
        ),
        ([(" ", 0, 9)], None, "must have a text"),
    ],
)
def test_damaged_subtasks_are_refused(tmp_path, subtasks, listed, message):
    write_subtasks(tmp_path, 10, subtasks, listed)
    with pytest.raises(ValueError, match=message):
        read_subtasks(make_index(tmp_path, {10: 100}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task_annotated.json", None, "task_annotated.json is missing, so the episode's subtasks cannot be read"),
        ("task_annotated.json", "{", "task_annotated.json is not JSON"),
        ("task_annotated.json", "[]", "task_annotated.json lacks cot_subtask_description_list"),
        ("subtask_0_annotated.json", '{"start_frame": 0}', "lacks cot_subtask_description, end_frame"),
        ("subtask_x_annotated.json", "{}", r"must be named subtask_<number>_annotated.json"),
    ],
)
def test_files_of_subtasks_that_cannot_be_read_are_refused(tmp_path, name, content, message):
    folder = write_subtasks(tmp_path, 10, [("a", 0, 9)])
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_subtasks(make_index(tmp_path, {10: 100}))
