"""Official scores against a scorer of plain loops, tables, and comparisons of two policies."""

import dataclasses
import json
import math
import random

import pytest

from openpi_b1k.rollouts import intervals, results, score_report, scores

TASKS = ("turning_on_radio", "can_meat", "canning_food", "chop_an_onion")


def rollout(
    task="can_meat", instance_id=301, q_score=0.0, *, normalized_time=1.0, distances=(1.0, 1.0, 1.0), reason=None
):
    return results.Rollout(
        task=task,
        instance_id=instance_id,
        rollout_id=0,
        steps=300,
        success=q_score == 1,
        q_score=q_score,
        agent_distance=dict.fromkeys(results.PARTS, 1.0),
        normalized_agent_distance=dict(zip(results.PARTS, distances, strict=True)),
        simulator_steps=300,
        simulator_time=10.0,
        normalized_time=normalized_time,
        failure_reason=reason,
    )


def some_rollouts(seed, share=0.7):
    draw = random.Random(seed)
    return [
        rollout(
            task,
            instance,
            draw.choice([0.0, 0.25, 0.5, 1.0]),
            normalized_time=draw.uniform(0.67, 2),
            distances=(draw.uniform(0, 2), draw.uniform(0, 2), draw.uniform(0, 2)),
        )
        for task in TASKS[:3]
        for instance in range(301, 311)
        if draw.random() < share
    ]


@pytest.mark.parametrize(("generation", "divisor"), [("2025", 10), ("2026", 20)])
def test_official_scores_equal_those_of_plain_loops(generation, divisor):
    played = some_rollouts(1)
    official = scores.official(played, generation=generation, tasks=TASKS)
    overall = dict.fromkeys(scores.SCORES, 0.0)
    for task in TASKS:
        sums = dict.fromkeys(scores.SCORES, 0.0)
        for one in played:
            if one.task != task:
                continue
            time = one.normalized_time
            sums["q_score"] += one.q_score
            sums["task_sr"] += 1 if one.q_score == 1 else 0
            sums["time_score"] += 2 - 1 / time if generation == "2025" else 3 - 2 / time
            for part in ("base", "left", "right"):
                sums[f"{part}_distance_score"] += one.normalized_agent_distance[part]
        for name, total in sums.items():
            assert official.per_task[task][name] == pytest.approx(total / divisor)
            overall[name] += total / divisor / 4
    assert official.overall == pytest.approx(overall)
    assert official.per_task["chop_an_onion"] == dict.fromkeys(scores.SCORES, 0)  # not played


def test_the_time_score_is_1_for_humans_and_0_at_the_limit():
    for generation, limit in (("2025", 2.0), ("2026", 1.5)):
        assert scores.of_rollout(rollout(normalized_time=1.0), generation)["time_score"] == pytest.approx(1)
        assert scores.of_rollout(rollout(normalized_time=1 / limit), generation)["time_score"] == pytest.approx(0)
    given_up = results.failed("can_meat", 301, 0, "policy_error", 10)
    assert list(scores.of_rollout(given_up, "2026").values()) == pytest.approx([0] * 6)


def test_the_divisor_can_be_chosen():
    played = [rollout(instance_id=301, q_score=1.0), rollout(instance_id=302, q_score=0.5)]
    for divisor in (2, 10, 20):
        official = scores.official(played, generation="2026", tasks=["can_meat"], instances=divisor)
        assert official.overall["q_score"] == pytest.approx(1.5 / divisor)
        assert official.instances == divisor
    with pytest.raises(ValueError, match="can_meat has 2 rollouts, more than the 1"):
        scores.official(played, generation="2026", tasks=["can_meat"], instances=1)


def test_a_robot_that_does_not_move_scores_infinitely_as_the_scorer_has_it():
    official = scores.official([rollout(distances=(math.inf, 1, 1))], generation="2026", tasks=TASKS)
    assert official.overall["base_distance_score"] == math.inf
    assert json.loads(official.to_json())["overall_scores"]["base_distance_score"] == math.inf


def test_the_score_file_has_the_official_names():
    official = scores.official([rollout(q_score=1.0)], generation="2025", tasks=TASKS)
    facts = json.loads(official.to_json())
    assert facts["per_task_scores"]["task_sr"] == {
        "turning_on_radio": 0,
        "can_meat": 0.1,
        "canning_food": 0,
        "chop_an_onion": 0,
    }
    assert list(facts["overall_scores"]) == [
        *("q_score", "task_sr", "time_score", "base_distance_score", "left_distance_score", "right_distance_score")
    ]
    assert facts["instances_per_task"] == 10


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match=r"the challenge of 2026 has no task \['can_meat'\]"):
        scores.official([rollout()], generation="2026", tasks=["canning_food"])
    with pytest.raises(ValueError, match="1 rollouts are there more than once, the first is can_meat_301_0"):
        scores.official([rollout(), rollout(q_score=1.0)], generation="2026", tasks=TASKS)
    with pytest.raises(ValueError, match="nothing to tell"):
        score_report.table([])


def test_the_report_tells_tasks_failures_and_divisors():
    played = [rollout(instance_id=301 + number, q_score=1.0) for number in range(8)]
    played += [results.failed("canning_food", 301 + number, 0, "policy_query_timeout", 9) for number in range(2)]
    played += [results.failed("can_meat", 320, 0, "policy_connection_lost", 9)]
    played = sorted(played, key=lambda one: one.stem)
    official = scores.official(played, generation="2026", tasks=TASKS)
    lines = score_report.text(played, official, generation="2026").splitlines()
    low, high = intervals.wilson(8, 9)
    assert lines[1].split() == [
        *("can_meat", "9", "1", "0.889", f"[{low:.3f},", f"{high:.3f}]", "0.889", f"[{low:.3f},", f"{high:.3f}]")
    ]
    assert lines[2].startswith("canning_food ")
    assert lines[3].startswith("all of these ")
    assert lines[3].split()[3:5] == ["11", "3"]
    assert "  policy_query_timeout, 2: canning_food_301_0 canning_food_302_0" in lines
    assert "  policy_connection_lost, 1: can_meat_320_0" in lines
    assert "official scores of 2026, 4 tasks x 20 rollouts; the 69 that were not played count 0:" in lines
    assert "  q_score               0.1000" in lines
    assert list(score_report.failures(played)) == ["policy_query_timeout", "policy_connection_lost"]  # most first
    assert lines[-1] == "  (the rules ask for 10 rollouts of a task: --instances-per-task)"


def test_the_report_of_2025_has_no_second_divisor():
    played = [rollout()]
    official = scores.official(played, generation="2025", tasks=TASKS)
    text = score_report.text(played, official, generation="2025")
    assert "the evaluator gave no rollout up" in text
    assert "--instances-per-task" not in text


def test_policies_are_compared_on_what_both_played():
    here = some_rollouts(1)
    there = some_rollouts(2)
    compared = scores.compare(here, there)
    partner = {one.stem: one for one in there}
    q_scores = [one.q_score - partner[one.stem].q_score for one in here if one.stem in partner]
    wins = [float(one.success) - partner[one.stem].success for one in here if one.stem in partner]
    assert compared.q_score == intervals.paired(q_scores)
    assert compared.success == pytest.approx(intervals.paired(wins))
    assert compared.missing_there == len(here) - len(q_scores) > 0
    assert compared.missing_here == len(there) - len(q_scores) > 0


def test_a_clear_difference_is_said():
    good = [rollout(instance_id=number, q_score=1.0) for number in range(20)]
    bad = [dataclasses.replace(one, q_score=0.0, success=False) for one in good]
    assert (
        scores.compare(good, bad).summary().splitlines()[-1]
        == "these are better than the others, by 20 paired rollouts"
    )
    assert scores.compare(bad, good[:15]).summary().splitlines()[-1] == (
        "these are worse than the others, by 15 paired rollouts (5 have no partner among the others and are left out)"
    )
    assert scores.compare(good, bad).summary().startswith("q-score +1.000 [+0.")


def test_an_unclear_difference_is_said_with_how_many_would_tell():
    here = [rollout(instance_id=number, q_score=[1.0, 0.0, 0.0][number % 3]) for number in range(9)]
    there = [rollout(instance_id=number, q_score=[0.0, 0.0, 0.5][number % 3]) for number in range(11)]
    needed = intervals.pairs_needed([1.0, 0.0, -0.5] * 3)
    assert scores.compare(here, there).summary().splitlines()[-1] == (
        "which is better cannot be told by 9 paired rollouts (2 have no partner among these and are left out); "
        f"a difference like this needs about {needed}"
    )
    assert scores.compare(here, here).summary().splitlines()[-1] == (
        "which is better cannot be told: no difference in the mean of 9 paired rollouts"
    )


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="none of 1 and 1 rollouts is of the same task, instance and rollout"):
        scores.compare([rollout(instance_id=1)], [rollout(instance_id=2)])
    with pytest.raises(ValueError, match="more than once"):
        scores.compare([rollout()], [rollout(), rollout()])
