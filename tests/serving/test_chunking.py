import dataclasses

import numpy as np
import pytest

from openpi_b1k.config.serving import APPLIES_TO, ExecutionConfig
from openpi_b1k.robots.layout import Field, Layout
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.serving import chunking
from openpi_b1k.serving.chunking import make_executor
from openpi_b1k.serving.executor import Continuation, Executor, Moment

HORIZON = 32
LINE = Layout((Field("joint", 1, "rad"), Field("gripper", 1, "1")))
IS_GRIPPER = np.zeros(ACTION.size, bool)
IS_GRIPPER[ACTION.slice("left_gripper")] = IS_GRIPPER[ACTION.slice("right_gripper")] = True

CONFIGS = {
    "receding_horizon": ExecutionConfig(execution_horizon=4),
    "resampled": ExecutionConfig(execution_horizon=6, execute_in_steps=4),
    "temporal_ensemble": ExecutionConfig("temporal_ensemble"),
    "receding_temporal": ExecutionConfig("receding_temporal", execution_horizon=3),
    "real_time": ExecutionConfig("real_time", execution_horizon=3),
}
every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(scope="module")
def control(data_dir):
    """Returns what openpi-comet's wrapper makes of chunks in each mode, by its name for mode and settings."""
    with np.load(data_dir / "b1k_transforms.npz") as stored:
        return {name: stored[name] for name in stored.files if name.startswith("control/")}


def drive(executor: Executor, chunks, num_steps: int) -> np.ndarray:
    """Plays `num_steps` steps with a model that answers at once with the next chunk."""
    chunks, actions = iter(chunks), []
    for _ in range(num_steps):
        if executor.needs_chunk():
            assert executor.accept(next(chunks))
        actions.append(executor.next_action())
    return np.stack(actions)


def line_chunk(start: float, gripper: float = 1.0, horizon: int = 8) -> np.ndarray:
    """Returns a chunk of LINE whose joint counts up from `start`."""
    return np.stack([start + np.arange(horizon), np.full(horizon, gripper)], axis=1)


def on_a_line(horizon: int = 8, **settings) -> Executor:
    return make_executor(ExecutionConfig(**settings), LINE, horizon)


@pytest.mark.parametrize("horizon", [32, 10])
def test_receding_horizon_is_the_references_to_the_bit(control, horizon):
    expected = control[f"control/out/receeding_horizon/action_horizon=5,max_len={horizon},ensemble=3"]
    executor = make_executor(ExecutionConfig(execution_horizon=horizon), ACTION, HORIZON)
    actions = drive(executor, control["control/in/chunks"], len(expected))
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, expected.astype(np.float32))


def test_temporal_ensemble_is_the_references(control):
    expected = control["control/out/temporal_ensemble/action_horizon=5,max_len=32,ensemble=3"]
    executor = make_executor(ExecutionConfig("temporal_ensemble", num_plans=5), ACTION, HORIZON)
    actions = drive(executor, control["control/in/chunks"], len(expected))
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6)


TEMPORAL = pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("action_horizon=5,max_len=32,ensemble=3", {"execution_horizon": 5, "num_plans": 3}),
        ("action_horizon=8,max_len=20,ensemble=2", {"execution_horizon": 8, "num_plans": 2, "plan_horizon": 20}),
    ],
)


@TEMPORAL
def test_receding_temporal_is_the_references_with_its_choice_of_gripper(control, name, settings):
    expected = control[f"control/out/receeding_temporal/{name}"]
    config = ExecutionConfig("receding_temporal", gripper_plan="oldest", **settings)
    actions = drive(make_executor(config, ACTION, HORIZON), control["control/in/chunks"], len(expected))
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6)


@TEMPORAL
def test_the_default_gripper_is_the_newest_plans_and_nothing_else_differs(control, name, settings):
    expected, chunks = control[f"control/out/receeding_temporal/{name}"], control["control/in/chunks"]
    executor = make_executor(ExecutionConfig("receding_temporal", **settings), ACTION, HORIZON)
    actions = drive(executor, chunks, len(expected))
    np.testing.assert_allclose(actions[:, ~IS_GRIPPER], expected[:, ~IS_GRIPPER], rtol=0, atol=1e-6)
    every = settings["execution_horizon"]
    newest = np.stack([chunks[step // every][step % every] for step in range(len(expected))]).astype(np.float32)
    np.testing.assert_array_equal(actions[:, IS_GRIPPER], newest[:, IS_GRIPPER])
    assert not np.array_equal(newest[:, IS_GRIPPER], expected[:, IS_GRIPPER].astype(np.float32))


def test_weights_by_hand_and_a_plan_ends_where_its_horizon_does():
    executor = on_a_line(kind="receding_temporal", execution_horizon=2, plan_horizon=5, num_plans=3)
    actions = drive(executor, [line_chunk(10, 1), line_chunk(20, -1), line_chunk(30, 1)], 6)
    growth = np.exp(0.005)
    assert actions[1].tolist() == [11, 1]
    np.testing.assert_allclose(actions[2], [(12 + 20 * growth) / (1 + growth), -1], rtol=1e-6)
    three = (14 + 22 * growth + 30 * growth**2) / (1 + growth + growth**2)
    np.testing.assert_allclose(actions[4], [three, 1], rtol=1e-6)
    np.testing.assert_allclose(actions[5], [(23 + 31 * growth) / (1 + growth), 1], rtol=1e-6)  # the first has ended


@every_kind
def test_what_is_known_is_what_is_handed_out(config):
    executor = make_executor(config, LINE, 8)
    assert executor.needs_chunk()
    assert executor.remaining(3).shape == (0, 2)
    for start in (0, 50, 90):
        executor.accept(line_chunk(start))
        known = executor.remaining(chunking.execution_horizon(config, 8))
        assert len(known) == (config.execute_in_steps or chunking.execution_horizon(config, 8))
        assert executor.can_go_on(len(known))
        assert not executor.needs_chunk(len(known))
        assert executor.needs_chunk(len(known) + 1)
        for index, action in enumerate(known):
            np.testing.assert_array_equal(executor.remaining(2)[: len(known) - index], known[index : index + 2])
            assert not executor.needs_chunk()
            np.testing.assert_array_equal(executor.next_action(), action)
        assert executor.needs_chunk()


@every_kind
def test_a_reset_forgets_and_answers_to_earlier_questions_are_ignored(config):
    executor = make_executor(config, LINE, 8)
    first = drive(executor, map(line_chunk, range(0, 90, 10)), 7)
    asked = executor.now()
    executor.reset()
    assert executor.now() == Moment(1, 0)
    assert executor.needs_chunk()
    assert executor.continuation() is None
    assert not executor.accept(line_chunk(77), asked)
    with pytest.raises(RuntimeError, match="no action is known for step 0: accept a chunk whenever needs_chunk"):
        executor.next_action()
    np.testing.assert_array_equal(drive(executor, map(line_chunk, range(0, 90, 10)), 7), first)


@every_kind
def test_handed_out_actions_and_given_chunks_are_the_callers(config):
    executor, other = (make_executor(config, LINE, 8) for _ in range(2))
    chunk = line_chunk(5)
    executor.accept(chunk)
    other.accept(chunk.copy())
    chunk[:] = 1000
    executor.remaining(2)[:] = 1000
    for _ in range(chunking.execution_horizon(config, 8) - 2 or 1):
        action = executor.next_action()
        np.testing.assert_array_equal(action, other.next_action())
        action[:] = 1000


@every_kind
@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((7, 2)), r"a chunk must be \[action horizon, action entries\] \[8, 2\]; got \[7, 2\]"),
        (np.zeros((1, 8, 2)), r"got \[1, 8, 2\]"),
        (np.where(np.arange(16).reshape(8, 2) == 3, np.nan, 0), "the chunk holds 1 entries that are NaN or infinite"),
    ],
)
def test_a_bad_chunk_is_refused_and_changes_nothing(config, chunk, message):
    executor, other = (make_executor(config, LINE, 8) for _ in range(2))
    executor.accept(line_chunk(3))
    other.accept(line_chunk(3))
    with pytest.raises(ValueError, match=message):
        executor.accept(chunk)
    np.testing.assert_array_equal(executor.remaining(9), other.remaining(9))


@pytest.mark.parametrize("kind", ["receding_horizon", "real_time"])
def test_a_late_chunk_acts_from_its_present_step_and_the_old_one_until_then(kind):
    executor = on_a_line(kind=kind, execution_horizon=3)
    executor.accept(line_chunk(0))
    joints = [executor.next_action()[0] for _ in range(3)]
    assert executor.needs_chunk()
    asked = executor.now()
    joints += [executor.next_action()[0] for _ in range(2)]  # the answer takes two steps
    assert executor.needs_chunk()
    assert executor.accept(line_chunk(100), asked)
    assert not executor.needs_chunk()
    joints += [executor.next_action()[0]]
    assert joints == [0, 1, 2, 3, 4, 102]
    assert executor.needs_chunk()  # three steps after the observation, not after the answer


@every_kind
def test_only_real_time_goes_on_past_the_step_at_which_the_model_is_due(config):
    executor = make_executor(config, LINE, 8)
    assert not executor.can_go_on()
    executor.accept(line_chunk(0))
    due = len([0 for n in range(1, 9) if not executor.needs_chunk(n)])
    end = 8 if config.kind == "real_time" else due
    assert [executor.can_go_on(n) for n in (end, end + 1)] == [True, False]
    for _ in range(due):
        executor.next_action()
    assert executor.needs_chunk()
    assert len(executor.remaining(9)) == end - due
    assert [executor.can_go_on(n) for n in (end - due, end - due + 1)] == [True, False]
    executor.reset()
    assert not executor.can_go_on()


def test_a_late_chunk_joins_an_average_at_its_present_step():
    executor = on_a_line(kind="receding_temporal", execution_horizon=2)
    executor.accept(line_chunk(0))
    executor.next_action()
    executor.next_action()
    asked = executor.now()
    assert executor.next_action()[0] == 2
    assert executor.accept(line_chunk(100, -1), asked)
    growth = np.exp(0.005)
    np.testing.assert_allclose(executor.next_action(), [(3 + 101 * growth) / (1 + growth), -1], rtol=1e-6)


@every_kind
def test_outdated_chunks_are_ignored_and_the_same_observations_replaces(config):
    executor = make_executor(config, LINE, 8)
    first = executor.now()
    executor.accept(line_chunk(0))
    executor.accept(line_chunk(60), first)
    assert executor.next_action()[0] == 60
    executor.accept(line_chunk(40))
    known = executor.remaining(9)
    assert not executor.accept(line_chunk(1), first)
    np.testing.assert_array_equal(executor.remaining(9), known)


@every_kind
def test_a_chunk_whose_steps_have_all_passed_is_ignored(config):
    executor = make_executor(config, LINE, 8)
    asked = executor.now()
    executor.accept(line_chunk(0))
    for _ in range(config.execute_in_steps or 8):
        executor.next_action()
    assert not executor.accept(line_chunk(1), asked)
    assert executor.needs_chunk()


def test_no_action_is_made_up_when_the_plan_has_ended():
    executor = on_a_line(execution_horizon=8)
    drive(executor, [line_chunk(0)], 8)
    with pytest.raises(RuntimeError, match="no action is known for step 8"):
        executor.next_action()


def test_replayed_actions_need_the_model_earlier():
    executor = on_a_line(execution_horizon=7)
    executor.accept(line_chunk(0))
    for _ in range(2):  # three at a time: the third time there is but one left of seven
        assert not executor.needs_chunk(3)
        for _ in range(3):
            executor.next_action()
    assert not executor.needs_chunk()
    assert executor.needs_chunk(3)
    assert len(executor.remaining(3)) == 1
    executor.accept(line_chunk(100))  # interrupts the plan
    assert executor.remaining(3)[:, 0].tolist() == [100, 101, 102]


def continued(continuation: Continuation | None) -> tuple[list[float], int]:
    assert continuation is not None
    return continuation.actions[:, 0].tolist(), continuation.num_fixed


def test_real_time_continues_the_rest_of_the_plan_with_the_longest_recent_delay_fixed():
    executor = on_a_line(kind="real_time", execution_horizon=3, initial_delay=1)
    assert executor.continuation() is None
    executor.accept(line_chunk(0))
    for delay in (2, 1):
        for _ in range(3):
            executor.next_action()
        expected = (list(range(3, 8)), 1) if delay == 2 else (list(range(105, 108)), 2)
        assert continued(executor.continuation()) == expected
        asked = executor.now()
        for _ in range(delay):
            executor.next_action()
        executor.accept(line_chunk(100), asked)
    executor.reset()
    executor.accept(line_chunk(0))
    assert continued(executor.continuation(5)) == (list(range(8)), 5)  # handed out whatever the next chunk says
    assert continued(executor.continuation(9)) == (list(range(8)), 8)  # no more than are left
    assert continued(executor.continuation()) == (list(range(8)), 2)  # a delay is the machine's, not the episode's
    for _ in range(chunking.NUM_DELAYS):
        executor.accept(line_chunk(0))
    assert continued(executor.continuation())[1] == 1  # but never below the initial one


def test_kept_actions_follow_the_executed_ones():
    executor = on_a_line(execution_horizon=5, kept_actions=2)
    executor.accept(line_chunk(0))
    assert continued(executor.continuation()) == ([0, 1], 2)
    drive(executor, [], 5)
    assert continued(executor.continuation()) == ([5, 6], 2)
    assert on_a_line().continuation() is None


def test_kept_actions_of_a_resampled_plan_are_taken_before_it_is_resampled():
    executor = on_a_line(execution_horizon=6, execute_in_steps=4, kept_actions=2)
    joints = drive(executor, [line_chunk(0)], 4)[:, 0]
    np.testing.assert_allclose(joints, [0, 5 / 3, 10 / 3, 5], atol=1e-6)
    assert executor.needs_chunk()
    assert continued(executor.continuation()) == ([6, 7], 2)
    executor.accept(line_chunk(0))
    executor.next_action()
    assert executor.continuation() is None  # no action of the chunk is at this place


def test_a_moving_gripper_switches_resampling_off():
    closing = line_chunk(0)
    closing[4:, 1] = -1
    executor = on_a_line(execution_horizon=6, execute_in_steps=4, kept_actions=2)
    np.testing.assert_array_equal(drive(executor, [closing], 4), closing[:4])
    assert executor.needs_chunk()
    np.testing.assert_array_equal(executor.continuation().actions, closing[4:6])
    closing_later = line_chunk(0)
    closing_later[6:, 1] = -1  # after the executed actions
    executor.reset()
    np.testing.assert_allclose(drive(executor, [closing_later], 4)[:, 0], [0, 5 / 3, 10 / 3, 5], atol=1e-6)


def test_defaults_of_the_execution_horizon():
    expected = {"receding_horizon": 8, "temporal_ensemble": 1, "receding_temporal": 4, "real_time": 4}
    for kind, horizon in expected.items():
        assert chunking.execution_horizon(ExecutionConfig(kind), 8) == horizon
    assert chunking.execution_horizon(ExecutionConfig(kept_actions=3), 8) == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ExecutionConfig(execution_horizon=9),
            r"execution_horizon must lie in \[1, 8\], the actions of a chunk; got 9",
        ),
        (ExecutionConfig(execution_horizon=7, kept_actions=2), r"execution_horizon \+ kept_actions .* got 9"),
        (ExecutionConfig(kept_actions=8), r"execution_horizon must lie in \[1, 8\].* got 0"),
        (ExecutionConfig(execution_horizon=4, execute_in_steps=7, kept_actions=2), r"execute_in_steps \+ .* got 9"),
        (ExecutionConfig("receding_temporal", plan_horizon=9), "plan_horizon .* got 9"),
        (ExecutionConfig("real_time", execution_horizon=6, initial_delay=3), r"\+ initial_delay .* got 9"),
        (ExecutionConfig("receding_temporal", execution_horizon=5, plan_horizon=4), "plan_horizon 4 .* horizon 5"),
        (ExecutionConfig(execution_horizon=3, execute_in_steps=2), "at least 4 points"),
    ],
)
def test_more_than_a_chunk_has_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_executor(config, LINE, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_plans": 5}, "num_plans has no effect with kind 'receding_horizon'; it is for temporal_ensemble and"),
        ({"kind": "real_time", "kept_actions": 4}, "kept_actions has no effect with kind 'real_time'"),
        ({"initial_delay": 1}, "initial_delay has no effect .* it is for real_time"),
        ({"execution_horizon": 0}, "execution_horizon must be at least 1; got 0"),
        ({"kept_actions": -1}, "kept_actions must not be negative; got -1"),
        ({"kind": "temporal_ensemble", "execution_horizon": 2}, "must be 1; got 2: receding_temporal asks every"),
        ({"execute_in_steps": 20}, "execute_in_steps needs execution_horizon"),
        ({"inpaint_until": 1.0, "kept_actions": 1}, r"inpaint_until is a flow time in \[0, 1\); got 1.0"),
        ({"inpaint_until": 0.5}, "inpaint_until has no effect without kept_actions"),
        ({"correlation": "file.npy"}, "correlation has no effect without kept_actions"),
        ({"kind": "real_time", "max_guidance": 0.0}, "max_guidance must be above 0; got 0.0"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExecutionConfig(**settings)


def test_it_is_said_of_each_setting_which_kinds_read_it():
    assert set(dataclasses.asdict(ExecutionConfig())) == {"kind", "execution_horizon", *APPLIES_TO}
