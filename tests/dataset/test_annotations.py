import json
import logging
import os
import pickle
import shutil

import pytest

from openpi_b1k import paths
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.data.index import annotations
from openpi_b1k.data.index.annotations import IN_EPISODE, IN_FILE, parse_file, read_annotations
from openpi_b1k.data.index.formats import open_index
from tests.dataset.annotation_cases import make_index, write_annotation

LENGTH = 100


def runs_of(skills, row=0):
    run = range(skills.offsets[row], skills.offsets[row + 1])
    return [(int(skills.first[i]), int(skills.stop[i]), skills.kinds[skills.kind_ids[i]].text) for i in run]


def read_one(root, skills, **meta):
    write_annotation(root, 10, skills, **meta)
    return read_annotations(make_index(root, {10: LENGTH}))


def counted(read):
    return {name: count for name, count in read.counts.items() if count}


def test_the_release_layout_is_read(data_dir, caplog):
    root = data_dir / "b1k_2025"
    index = open_index(root, SourceConfig(root=str(root)))
    with caplog.at_level(logging.INFO):
        read = read_annotations(index)
    assert read.windows.tolist() == [[0, 247], [7, 123], [0, 479], [0, 237], [0, 114]]
    assert read.durations.tolist() == index.lengths.tolist()
    assert read.has_file.all()
    assert runs_of(read.skills)[:2] == [(0, 52, "move to radio"), (52, 117, "pick up radio from coffee table")]
    assert [runs_of(read.skills, row)[-1][1] for row in range(5)] == index.lengths.tolist()
    split = read.skills.kind_at(0, 65)  # between the two halves of a split skill
    assert (split.skills, split.objects) == (("pick up from",), ("radio_89", "coffee_table_koagbh_0"))
    # counted by hand in the five files: one split duration, whose halves are 10 frames apart, and gaps of 12 and 28
    assert counted(read) == {"segments": 21, "split": 1, "gaps": 3, "gap frames": 50}
    assert caplog.messages == [
        f"annotations of {root}: 5 of 5 episodes, 21 skill segments; 1 split, 3 gaps, 50 gap frames"
    ]


@pytest.mark.parametrize(
    ("skills", "runs", "counts"),
    [
        ([("a", [0, 100], [])], [(0, 100, "a")], {"no objects": 1}),
        ([("a", [0, 100], [[]])], [(0, 100, "a")], {"no objects": 1}),
        ([("a", [0, 100], None)], [(0, 100, "a")], {"no objects": 1}),
        ([("a", [0, 50], ["x_1"]), ("b", [50, 8], ["x_1"])], [(0, 100, "a x")], {"no length": 1}),
        ([("a", [0, 50], ["x_1"]), ("b", [50, 50], ["x_1"])], [(0, 100, "a x")], {"no length": 1}),
        ([("a", [-20, 0], ["x_1"]), ("b", [-5, 60], ["x_1"])], [(0, 100, "b x")], {"no length": 1}),
        ([(None, [0, 50], ["x_1"]), ("b", [50, 60], ["x_1"])], [(0, 100, "b x")], {"no description": 1}),
        ([([], [0, 50], ["x_1"]), (" ", [0, 9], ["x_1"])], [], {"no description": 2, "no skills": 1}),
        ([("a", [[0, 10], [30, 40]], ["x_1"])], [(0, 100, "a x")], {"split": 1, "gaps": 1, "gap frames": 20}),
        ([("a", [[0, 10]], ["x_1"])], [(0, 100, "a x")], {}),
        ([("a", [[[0, 10], [10, 9]]], ["x_1"])], [(0, 100, "a x")], {"split": 1, "no length": 1}),
        ([("a", [0.0, 10.0], ["x_1"])], [(0, 100, "a x")], {}),
        ([("a", [0, None], ["x_1"]), ("b", 5, ["x_1"])], [], {"no duration": 2, "no skills": 1}),
        ([("a", [], ["x_1"]), ("b", [0.5, 3], ["x_1"])], [], {"no duration": 2, "no skills": 1}),
        ([("a", [0, 60], ["x_1"]), ("b", [50, 90], ["x_1"])], [(0, 50, "a x"), (50, 100, "b x")], {"overlaps": 1}),
        ([("a", [0, 140], ["x_1"])], [(0, 100, "a x")], {"past the end": 1}),
        ([("a", [0, 90], ["x_1"]), ("b", [120, 140], ["x_1"])], None, {"past the end": 1, "gaps": 1, "gap frames": 30}),
        ([(["a", "b"], [0, 9], [["x_1"], ["y_1"]])], [(0, 100, "a x and b y")], {"several skills": 1}),
        ([(["a", None], [0, 9], [["x_1"], ["y_1"]])], [(0, 100, "a x")], {}),
        ([(["a", "b"], [0, 9], [["x_1"]])], [(0, 100, "a x and b")], {"several skills": 1}),
        ([("a", [0, 9], [[["x_1"], ["y_1"]], ""])], [(0, 100, "a x, y")], {}),
        ([], [], {"no skills": 1}),
    ],
)
def test_awkward_annotations_follow_the_rules_and_are_counted(tmp_path, skills, runs, counts):
    read = read_one(tmp_path, skills)
    if runs is not None:
        assert runs_of(read.skills) == runs
    assert {name: count for name, count in counted(read).items() if name != "segments"} == counts
    assert set(read.counts) == {*IN_FILE, *IN_EPISODE}


def test_a_skill_that_begins_past_the_end_has_only_the_gap_before_it(tmp_path):
    read = read_one(tmp_path, [("a", [0, 90], ["x_1"]), ("b", [120, 140], ["x_1"])])
    assert runs_of(read.skills) == [(0, 90, "a x"), (90, 100, "b x")]
    read = read_one(tmp_path, [("a", [0, 110], ["x_1"]), ("b", [120, 140], ["x_1"])])
    assert runs_of(read.skills) == [(0, 100, "a x")]


@pytest.mark.parametrize("window", [None, [], [3], "all", [1, None], [[0, 4], [6, 9]]])
def test_a_window_that_is_no_pair_is_none(tmp_path, window):
    read = read_one(tmp_path, [], valid_duration=window, task_duration=None)
    assert (read.windows.tolist(), read.durations.tolist()) == ([[-1, -1]], [-1])


@pytest.mark.parametrize("meta", [None, [], "x"])
def test_an_annotation_may_lack_its_meta_data(tmp_path, meta):
    path = write_annotation(tmp_path, 10)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"meta_data": meta}))
    assert read_annotations(make_index(tmp_path, {10: LENGTH})).windows.tolist() == [[-1, -1]]


def test_episodes_without_a_file_have_no_skills(tmp_path, caplog):
    write_annotation(tmp_path, 20)
    write_annotation(tmp_path, 30)  # not in the index
    index = make_index(tmp_path, {10: 100, 20: 100, 50010: 100})
    with caplog.at_level(logging.INFO):
        read = read_annotations(index)
    assert read.has_file.tolist() == [False, True, False]
    assert [len(runs_of(read.skills, row)) for row in range(3)] == [0, 2, 0]
    assert read.counts["segments"] == 2
    assert "1 of 3 episodes, 2 skill segments; 2 no file" in caplog.text


def test_episodes_that_no_annotation_can_be_named_for_have_none(tmp_path):
    index = make_index(tmp_path, {10: 100})
    index.recordings[:] = -1
    assert read_annotations(index).counts["no file"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"episode_00000010\.json is not JSON: .*; download it again"),
        ("\xff", "is not JSON"),
        ("[]", "has no list skill_annotation; it is no annotation of an episode"),
        ('{"skill_annotation": [3]}', "has no list skill_annotation"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, content, message):
    path = write_annotation(tmp_path, 10)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_annotations(make_index(tmp_path, {10: 100}))


@pytest.fixture
def parsed(monkeypatch):
    """Names of the files that were parsed."""
    names = []

    def parse(path):
        names.append(path.name)
        return parse_file(path)

    monkeypatch.setattr(annotations, "parse_file", parse)
    return names


@pytest.fixture
def annotated(tmp_path):
    for recording in (10, 20, 10010):
        write_annotation(tmp_path, recording, valid_duration=[3, 90], task_duration=100)
    return make_index(tmp_path, {10: 100, 20: 100, 10010: 100})


def test_files_are_parsed_once(annotated, parsed):
    first = read_annotations(annotated)
    assert len(parsed) == 3
    again = read_annotations(annotated.take([1, 0]))
    assert len(parsed) == 3
    assert again.windows.tolist() == first.windows[:2].tolist()
    assert runs_of(again.skills, 1) == runs_of(first.skills, 0)
    assert again.counts | {"segments": 6} == first.counts


@pytest.mark.parametrize("change", ["size", "time", "removed", "added"])
def test_a_folder_that_changed_is_parsed_again(annotated, parsed, change):
    read_annotations(annotated)
    path = annotated.root / "annotations/task-0000/episode_00000010.json"
    status = path.stat()
    if change == "size":
        path.write_text(json.dumps({"skill_annotation": []}))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    elif change == "removed":
        path.unlink()
    else:
        write_annotation(annotated.root, 30)
    parsed.clear()
    read = read_annotations(annotated)
    assert {"episode_00000020.json"} <= set(parsed)
    assert "episode_00010010.json" not in parsed
    assert runs_of(read.skills) == ([] if change in {"size", "removed"} else runs_of(read.skills, 2))


def test_another_copy_of_the_data_has_a_cache_of_its_own(annotated, parsed, tmp_path_factory):
    read_annotations(annotated)
    other = shutil.copytree(annotated.root, tmp_path_factory.mktemp("copies") / "copy")
    (other / "annotations/task-0000/episode_00000020.json").unlink()
    assert read_annotations(make_index(other, {20: 100})).counts["no file"] == 1
    parsed.clear()
    assert read_annotations(annotated).counts["no file"] == 0
    assert parsed == []


def test_a_damaged_cache_is_made_again(annotated, parsed):
    whole = read_annotations(annotated)
    damaged = [path for path in (paths.cache_dir() / "annotations").rglob("*.npz") if path.stat().st_mtime]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    parsed.clear()
    assert read_annotations(annotated).windows.tolist() == whole.windows.tolist()
    assert len(parsed) == 3


def test_annotations_can_be_sent_to_workers(annotated):
    read = read_annotations(annotated)
    sent = pickle.loads(pickle.dumps(read))
    assert runs_of(sent.skills) == runs_of(read.skills)
    assert sent.skills.kinds == read.skills.kinds
