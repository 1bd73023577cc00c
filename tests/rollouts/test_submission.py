"""Submissions: which rollouts count, names, files byte by byte, and nothing half-written."""

import json
import zipfile
from typing import Any

import pytest

from openpi_b1k.rollouts import results, submission

TASKS = ("turning_on_radio", "can_meat")
NAME: dict[str, Any] = {
    "track": "standard",
    "testset": "public",
    "team": "My Team",
    "affiliation": "Uni-X",
    "date": "2026-10-16",
}


@pytest.fixture
def extras(tmp_path):
    paths = [tmp_path / name for name in ("wrapper.py", "robot.yaml", "README.md")]
    for path in paths:
        path.write_text(f"content of {path.name}")
    return paths


def play(directory, task="can_meat", instance_id=301, rollout_id=0):
    return results.write(directory, results.failed(task, instance_id, rollout_id, "policy_error", 5))


def find(*directories, **options):
    options = {"generation": "2026", "testset": "public", **options}
    return submission.find(
        directories, generation=options["generation"], instances=submission.counted(TASKS, **options)
    )


def test_rollouts_of_several_directories_are_put_in_order(tmp_path):
    paths = [play(tmp_path / "b", "can_meat", 310), play(tmp_path / "a", "turning_on_radio", 301), play(tmp_path / "a")]
    found = find(tmp_path / "a", tmp_path / "b")
    assert found.paths == (paths[2], paths[0], paths[1])
    assert [rollout.stem for rollout in found.rollouts] == [path.stem for path in found.paths]


def test_a_rollout_in_two_directories_is_refused(tmp_path):
    first, second = play(tmp_path / "a"), play(tmp_path / "b")
    with pytest.raises(ValueError, match=r"can_meat_301_0 is there twice.*cherry-picking") as refusal:
        find(tmp_path / "a", tmp_path / "b")
    assert str(first) in str(refusal.value)
    assert str(second) in str(refusal.value)


@pytest.mark.parametrize(
    ("rollout", "options", "message"),
    [
        (("chop_an_onion", 301, 0), {}, "no task 'chop_an_onion' among its 2"),
        (("can_meat", 301, 1), {}, "played once, as rollout 0"),
        (("can_meat", 321, 0), {}, "instance 321 is none of the 20 that count"),
        (("can_meat", 300, 0), {}, "instance 300 is none of the 20"),
        (("can_meat", 320, 0), {"testset": "hidden"}, "instance 320 is none of the 20"),
        (("can_meat", 311, 0), {"instances": 10}, "instance 311 is none of the 10 that count"),
    ],
)
def test_what_the_scorer_does_not_count_is_refused_by_name(tmp_path, rollout, options, message):
    path = play(tmp_path, *rollout)
    with pytest.raises(ValueError, match=message) as refusal:
        find(tmp_path, **options)
    assert str(refusal.value).startswith(f"{path}: ")


def test_the_hidden_instances_of_2026_follow_the_public_ones(tmp_path):
    play(tmp_path, "can_meat", 321)
    play(tmp_path, "can_meat", 340)
    assert len(find(tmp_path, testset="hidden").paths) == 2


def test_the_instances_of_2025_are_told_by_its_table(tmp_path):
    path = play(tmp_path, "can_meat", 77)
    (tmp_path / "json").rename(tmp_path / "metrics")
    assert find(tmp_path, generation="2025").paths == (tmp_path / "metrics" / path.name,)
    table = tmp_path / "test_instances.csv"
    table.write_text('number,task,public\n1,can_meat,"77,3"\n')
    assert len(find(tmp_path, generation="2025", test_instances=table).paths) == 1
    table.write_text('number,task,public\n1,can_meat,"7,3"\n')
    with pytest.raises(ValueError, match="instance 77 is none of the 2 that count"):
        find(tmp_path, generation="2025", test_instances=table)


def test_more_instances_than_there_are_are_refused():
    with pytest.raises(ValueError, match="2025 has 10 public instances of a task; 20 cannot be counted"):
        submission.counted(TASKS, generation="2025", testset="public", instances=20)
    with pytest.raises(ValueError, match="0 cannot be counted"):
        submission.counted(TASKS, generation="2026", testset="public", instances=0)


def test_directories_that_do_not_fit_are_refused(tmp_path):
    play(tmp_path)
    with pytest.raises(ValueError, match="has json/, which is not of 2025; set --generation"):
        find(tmp_path, generation="2025")
    (tmp_path / "empty" / "json").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no rollout in"):
        find(tmp_path / "empty")
    (tmp_path / "json" / "can_meat_302_0.json").write_text("{")
    with pytest.raises(ValueError, match=r"can_meat_302_0.json: Expecting"):
        find(tmp_path)


def test_the_name_has_five_parts():
    assert submission.name(**NAME, generation="2026") == "standard.public.My_Team.Uni-X.2026-10-16"
    assert submission.name(**{**NAME, "track": "privileged"}, generation="2025").startswith("privileged.public.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"team": "a.b"}, "team 'a.b' must be letters"),
        ({"affiliation": "a/b"}, "affiliation 'a/b' must be"),
        ({"team": ""}, "team '' must be"),
        ({"date": "16.10.2026"}, "date '16.10.2026' must be"),
        ({"track": "privileged"}, "2026 has one track"),
    ],
)
def test_a_name_that_would_be_read_differently_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        submission.name(**{**NAME, **change}, generation="2026")


def test_files_are_submitted_byte_by_byte(tmp_path, extras):
    path = play(tmp_path / "in")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"extra": 1}, indent=None)
    )  # as another version writes it
    output = tmp_path / "out" / "z.zip"
    folder = submission.write(output, "a.b.c.d.e", find(tmp_path / "in"), extras)
    assert folder == tmp_path / "out" / "a.b.c.d.e"
    expected = {f"a.b.c.d.e/json/{path.name}": path.read_bytes()}
    expected |= {f"a.b.c.d.e/{extra.name}": extra.read_bytes() for extra in extras}
    with zipfile.ZipFile(output) as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == expected
    on_disk = {str(one.relative_to(output.parent)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    assert on_disk == expected
    assert sorted(one.name for one in output.parent.iterdir()) == ["a.b.c.d.e", "z.zip"]
    assert [rollout.stem for rollout in results.read_all(folder)] == [path.stem]  # the scorer's layout


def test_the_same_files_make_the_same_zip(tmp_path, extras):
    play(tmp_path / "in")
    for place in ("one", "two"):
        submission.write(tmp_path / place / "z.zip", "name", find(tmp_path / "in"), extras)
    assert (tmp_path / "one" / "z.zip").read_bytes() == (tmp_path / "two" / "z.zip").read_bytes()


def test_a_submission_is_not_written_over_another(tmp_path, extras):
    play(tmp_path / "in")
    found = find(tmp_path / "in")
    submission.write(tmp_path / "z.zip", "name", found, extras)
    with pytest.raises(FileExistsError, match=r"z.zip is there; move it away"):
        submission.write(tmp_path / "z.zip", "other", found, extras)
    with pytest.raises(FileExistsError, match="name is there"):
        submission.write(tmp_path / "y.zip", "name", found, extras)
    with pytest.raises(ValueError, match=r"end it in \.zip"):
        submission.write(tmp_path / "y.tar", "other", found, extras)


def test_a_write_that_fails_leaves_nothing(tmp_path, extras, monkeypatch):
    play(tmp_path / "in")
    found = find(tmp_path / "in")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        submission.write(tmp_path / "out" / "z.zip", "name", found, extras)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_rules_ask_for_must_be_there(tmp_path, extras):
    wrapper, robot, readme = extras
    for kept, message in (
        ((robot, readme), r"has a wrapper \(\.py\)"),
        ((wrapper, readme), "has a robot's file"),
        ((wrapper, robot), r"has a README \(\.md\)"),
    ):
        with pytest.raises(ValueError, match=message):
            submission.check_extras(kept)
    with pytest.raises(FileNotFoundError, match=r"none\.py to submit"):
        submission.check_extras([*extras, tmp_path / "none.py"])
    with pytest.raises(ValueError, match="of the same name"):
        submission.check_extras([*extras, wrapper])
    readme.write_text("")
    with pytest.raises(ValueError, match=r"README.md is empty"):
        submission.check_extras(extras)


def test_rollouts_without_a_video_are_told(tmp_path):
    play(tmp_path, "can_meat", 301)
    play(tmp_path, "can_meat", 302)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "can_meat_301_0.mp4").touch()
    assert submission.without_video(find(tmp_path)) == ["can_meat_302_0"]
