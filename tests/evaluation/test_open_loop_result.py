import dataclasses
import json

import numpy as np
import pytest

from openpi_b1k.evaluation.open_loop.baselines import EXPLAINED
from openpi_b1k.evaluation.open_loop.result import METHODS, Result
from openpi_b1k.evaluation.open_loop.tables import summary, tables, verdict
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.rollouts.intervals import wilson

GRIPPERS = [name.endswith("gripper") for name in ACTION.names]
FACTS = {"checkpoint": "<run>/7", "data": "/data", "split": "held-out", "seed": 3}


def made_result(num_frames=12, horizon=9):
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.1, 1, (len(METHODS), num_frames, len(ACTION.names), horizon))
    mask = rng.uniform(size=(num_frames, horizon)) < 0.7
    mask[:, 0], mask[:, -1] = True, False
    return Result(
        errors=errors,
        step_mask=mask,
        layout=ACTION,
        episodes=np.repeat([4, 9, 11], num_frames // 3),
        tasks=tuple("ab"[i % 2] for i in range(num_frames)),
        skills=("<press>",) * num_frames,
        facts=FACTS,
        notes=("a <note>",),
    )


def looped_mean(result, method, field, frames):
    """Returns a mean error as a loop over frames and steps."""
    steps = range(result.action_horizon)
    counted = [
        result.errors[method, frame, field, step] for frame in frames for step in steps if result.step_mask[frame, step]
    ]
    return sum(counted) / len(counted)


def test_means_leave_padded_steps_out():
    result = made_result()
    spoilt = dataclasses.replace(result, errors=np.where(result.step_mask[None, :, None], result.errors, 1e9))
    for method in range(len(METHODS)):
        for field in range(len(ACTION.names)):
            expected = looped_mean(result, method, field, range(12))
            assert spoilt.means()[method, field] == pytest.approx(expected, rel=1e-12)
            of_task = looped_mean(result, method, field, range(0, 12, 2))
            assert spoilt.means(spoilt.groups("task")["a"])[method, field] == pytest.approx(of_task, rel=1e-12)
            at_third = [result.errors[method, n, field, 2] for n in range(12) if result.step_mask[n, 2]]
            assert spoilt.by_step()[method, field, 2] == pytest.approx(np.mean(at_third), rel=1e-12)
    assert np.isnan(spoilt.by_step()[..., -1]).all()
    assert result.named_steps == [1, 8, 9]


def test_the_share_of_episodes_counts_episodes_and_ties_half():
    errors = np.ones((len(METHODS), 6, len(ACTION.names), 1))
    errors[2] = 0.5  # repeat last is the best baseline everywhere
    errors[0] = [[[0.4]], [[0.5]], [[0.3]], [[0.3]], [[0.5]], [[0.5]]]  # nearer, nearer, equal
    whole = dataclasses.replace(
        made_result(6, 1), errors=errors, step_mask=np.ones((6, 1), bool), episodes=np.repeat([1, 2, 3], 2)
    )
    assert (whole.best_baselines() == METHODS.index("repeat last")).all()
    for share, interval in whole.wins():
        assert share == pytest.approx(2.5 / 3)
        assert interval == wilson(2.5, 3)
    assert "at least as near" in verdict(whole)
    errors[0, :, 2] = 0.6
    assert verdict(whole) == "The policy is further from the demonstrations than a baseline in: left_arm (repeat last)."


def test_json_and_tables_hold_the_means():
    result = made_result()
    stored = json.loads(result.to_json())
    means = result.means()
    for f, name in enumerate(ACTION.names):
        assert stored["fields"][name]["error"] == dict(zip(METHODS, means[:, f].tolist(), strict=True))
        assert stored["fields"][name]["error_by_step"]["policy"][-1] is None
        assert (stored["fields"][name]["unit"] == "wrong decisions, share") == GRIPPERS[f]
    assert stored["tasks"]["b"]["frames"] == 6
    assert list(stored["skills"]) == ["<press>"]
    assert (stored["frames"], stored["episodes"], stored["seed"], stored["notes"]) == (12, 3, 3, ["a <note>"])
    assert set(stored["baselines"]) == set(METHODS[1:])
    by_field, by_step, by_task = tables(result)  # none by skill: there is one alone
    assert by_field.rows[2][:3] == ("left_arm", "rad", f"{means[0, 2]:.3g}")
    assert by_step.head == ("field", "of", "step 1", "step 8", "step 9")
    assert {row[-1] for row in by_step.rows} == {"-"}
    assert [row[:2] for row in by_task.rows] == [("a", "6"), ("b", "6")]
    text = summary(result)
    assert "<run>/7 on /data, held-out episodes: 12 frames of 3 episodes, chunks of 9 actions, seed 3" in text
    assert "note: a <note>" in text
    for line in EXPLAINED.items():
        assert ": ".join(line) in text
