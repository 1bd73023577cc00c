"""Rollout files: both years' layouts as the evaluators write them, and what is refused."""

import dataclasses
import json
import math

import pytest

from openpi_b1k.rollouts import results

# As the 2026 evaluator writes it.
LAYOUT_2026 = {
    "task": "turning_on_radio",
    "instance_id": 301,
    "rollout_id": 0,
    "steps": 900,
    "success": False,
    "agent_distance": {"base": 2.5, "left": 1.0, "right": 0.5},
    "normalized_agent_distance": {"base": 0.8, "left": 2.0, "right": 4.0},
    "q_score": {"final": 0.25},
    "time": {"simulator_steps": 900, "simulator_time": 30.0, "normalized_time": 1.25},
}
# As the 2025 evaluator writes it: the metrics alone.
LAYOUT_2025 = {name: LAYOUT_2026[name] for name in ("agent_distance", "normalized_agent_distance", "q_score", "time")}
ROLLOUT = results.Rollout(
    task="turning_on_radio",
    instance_id=301,
    rollout_id=0,
    steps=900,
    success=False,
    q_score=0.25,
    agent_distance={"base": 2.5, "left": 1.0, "right": 0.5},
    normalized_agent_distance={"base": 0.8, "left": 2.0, "right": 4.0},
    simulator_steps=900,
    simulator_time=30.0,
    normalized_time=1.25,
)


def stored(directory, facts, name="turning_on_radio_301_0.json"):
    path = directory / name
    path.write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return path


def changed(**values):
    return {**LAYOUT_2026, **values}


def test_it_writes_the_layout_of_2026():
    assert json.loads(ROLLOUT.to_json()) == LAYOUT_2026
    assert list(json.loads(ROLLOUT.to_json())) == list(LAYOUT_2026)


@pytest.mark.parametrize("facts", [LAYOUT_2026, LAYOUT_2025], ids=["2026", "2025"])
def test_both_years_read_alike(tmp_path, facts):
    assert results.read(stored(tmp_path, facts)) == ROLLOUT


def test_a_q_score_of_1_is_the_success_of_2025(tmp_path):
    rollout = results.read(stored(tmp_path, {**LAYOUT_2025, "q_score": {"final": 1.0}}, "chop_an_onion_7_0.json"))
    assert rollout.success
    assert rollout.key == ("chop_an_onion", 7, 0)


def test_a_failure_scores_nothing_and_takes_all_the_time(tmp_path):
    rollout = results.failed("canning_food", 305, 0, "policy_query_timeout", 120)
    assert rollout.failure_reason == "policy_query_timeout"
    assert (rollout.q_score, rollout.success, rollout.steps, rollout.simulator_time) == (0, False, 120, 4.0)
    assert set(rollout.normalized_agent_distance.values()) == {0}
    assert rollout.normalized_time == pytest.approx(2 / 3)
    assert results.read(results.write(tmp_path, rollout)) == rollout


def test_an_unknown_failure_is_refused():
    with pytest.raises(ValueError, match=r"no failure 'crashed'; known: .*policy_error"):
        results.failed("canning_food", 305, 0, "crashed", 0)


def test_writing_leaves_the_file_alone(tmp_path):
    still = dataclasses.replace(ROLLOUT, normalized_agent_distance=dict.fromkeys(results.PARTS, math.inf))
    results.write(tmp_path, ROLLOUT)
    assert results.write(tmp_path, still) == tmp_path / "json" / "turning_on_radio_301_0.json"
    assert [path.name for path in (tmp_path / "json").iterdir()] == ["turning_on_radio_301_0.json"]
    assert results.read_all(tmp_path) == [still]  # infinite ratios too, written as the evaluator does


def test_an_earlier_file_survives_a_write_that_fails(tmp_path, monkeypatch):
    results.write(tmp_path, ROLLOUT)
    monkeypatch.setattr(results.Rollout, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write(tmp_path, dataclasses.replace(ROLLOUT, q_score=0.5))
    assert results.read_all(tmp_path) == [ROLLOUT]


def test_all_of_a_directory_are_read_by_name(tmp_path):
    for instance in (310, 302, 301):
        results.write(tmp_path, dataclasses.replace(ROLLOUT, instance_id=instance))
    (tmp_path / "json" / "notes.txt").write_text("not a rollout")
    (tmp_path / "json" / "turning_on_radio_303_0.json.new").write_text("{")  # a write under way
    assert [rollout.instance_id for rollout in results.read_all(tmp_path)] == [301, 302, 310]


def test_all_of_2025_are_in_metrics(tmp_path):
    (tmp_path / "metrics").mkdir()
    stored(tmp_path / "metrics", LAYOUT_2025)
    assert results.read_all(tmp_path) == [ROLLOUT]


def test_a_directory_without_rollouts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither json/ \(2026\) nor metrics/ \(2025\)"):
        results.read_all(tmp_path)


def test_a_directory_of_both_years_is_refused(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "metrics").mkdir()
    with pytest.raises(ValueError, match="both json/ and metrics/"):
        results.read_all(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "turning_on_radio_301_0.json: Expecting"),
        ("[" * 100_000, "recursion"),
        ('{"time": {"simulator_steps": 1}, "q_score": {"final": 1' + "0" * 400 + "}}", "too large"),
        ("[]", "no q_score; is this the evaluator's file"),
        ({"q_score": {"final": 0.0}}, "no time"),
        ({**LAYOUT_2025, "q_score": 0.5}, "no q_score.final"),
        ({**LAYOUT_2025, "q_score": {"final": True}}, "q_score.final is True, not a number"),
        ({**LAYOUT_2025, "q_score": {"final": math.nan}}, "q_score.final is nan, not a number"),
        ({**LAYOUT_2025, "q_score": {"final": 1.5}}, r"q_score is 1.5, not in \[0, 1\]"),
        ({**LAYOUT_2025, "agent_distance": {"base": 0.0, "left": 0.0}}, "no agent_distance.right"),
        (changed(instance_id=302), r"the name says .*301.*, the content .*302"),
        (changed(instance_id="301"), "instance_id is '301', not a whole number"),
        (changed(task=["radio"]), "task is .*, not a text"),
        (changed(success=1), "success is 1, not true or false"),
        (changed(success=True), "success with a q_score of 0.25"),
        (changed(steps=-1), "steps is -1, not a finite number from 0"),
        (changed(failure_reason=3), "failure_reason is 3, not a text"),
        (changed(success=True, q_score={"final": 1.0}, failure_reason="policy_error"), "both a success and a failure"),
        (changed(time={**LAYOUT_2026["time"], "normalized_time": 0.0}), "normalized_time is 0.0; it must be above 0"),
        (changed(time={**LAYOUT_2026["time"], "simulator_time": math.inf}), "simulator_time is inf, not a finite"),
        (changed(agent_distance={"base": -1, "left": 0, "right": 0}), "agent_distance is .*each from 0"),
    ],
)
def test_what_is_no_rollout_is_refused_by_name(tmp_path, facts, message):
    path = stored(tmp_path, facts)
    with pytest.raises(ValueError, match=message) as refusal:
        results.read(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "turning_on_radio_301_0.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"301_0.json: .*decode"):
        results.read(path)


@pytest.mark.parametrize(
    "name", ["turning_on_radio.json", "radio_1.json", "_1_0.json", "radio_01_0.json", "radio_1_x.json"]
)
def test_a_name_that_tells_no_rollout_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no <task>_<instance>_<rollout>"):
        results.read(stored(tmp_path, LAYOUT_2025, name))


@pytest.mark.parametrize("task", ["", "../radio", "ra\ndio"])
def test_a_task_must_make_a_file_name(task):
    with pytest.raises(ValueError, match="is no <task>_<instance>_<rollout>"):
        dataclasses.replace(ROLLOUT, task=task)


def test_negative_numbers_make_no_file_name():
    with pytest.raises(ValueError, match="both numbers start at 0"):
        dataclasses.replace(ROLLOUT, instance_id=-1)
