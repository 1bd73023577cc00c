"""Command lines of the evaluators, read back by a shell's rules and by bash itself."""

import dataclasses
import pathlib
import shlex
import subprocess

import pytest

from openpi_b1k.rollouts import evaluator_commands, results, slurm
from openpi_b1k.rollouts.evaluator_commands import Evaluator, Run

TASKS = {"turning_on_radio": 0, "chop_an_onion": 42, "canning_food": 48}
ENDPOINTS = ["10.0.0.1:8000", "10.0.0.2:8000", "gpu-3.local:8001", "10.0.0.4:8000"]
EVALUATOR = Evaluator("2026", pathlib.Path("/results/a b"))


def played(task, instance, reason=None):
    rollout = results.failed(task, instance, 0, "policy_error", 5)
    return dataclasses.replace(rollout, failure_reason=reason)


def test_one_endpoint_plays_a_tasks_instances_together_in_2026():
    [run] = evaluator_commands.plan({"canning_food": 48}, range(3), ENDPOINTS[:1], generation="2026")
    assert shlex.split(run.command(EVALUATOR)) == [
        *("python", "-m", "omnigibson.eval.eval", "--task-name", "canning_food"),
        *("--host", "10.0.0.1", "--port", "8000", "--mode", "public_test", "--instance-indices", "0", "1", "2"),
        *("--num-envs", "3", "--env-wrapper", "omnigibson.eval.wrappers.RGBDFullResWrapper"),
        *("--output-dir", "/results/a b", "--write-video"),
    ]


def test_every_environment_has_an_endpoint_of_its_own_in_2026():
    runs = evaluator_commands.plan({"turning_on_radio": 0}, range(10), ENDPOINTS, generation="2026")
    assert [run.instances for run in runs] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert all(len(set(run.endpoints)) == len(run.instances) for run in runs)
    words = shlex.split(runs[0].command(EVALUATOR))
    at = words.index("--policy-endpoints")
    assert words[at + 1 : at + 5] == ENDPOINTS
    assert "--host" not in words
    assert words[words.index("--num-envs") + 1] == "4"


def test_a_run_has_no_more_environments_than_asked_for():
    for endpoints in (ENDPOINTS, ENDPOINTS[:1]):
        runs = evaluator_commands.plan(TASKS, range(10), endpoints, generation="2026", environments=3)
        assert max(len(run.instances) for run in runs) == 3
        assert sum(len(run.instances) for run in runs) == 30


def test_endpoints_of_2025_go_side_by_side_with_their_instances_in_turn():
    runs = evaluator_commands.plan({"chop_an_onion": 42}, range(10), ENDPOINTS, generation="2025")
    assert [run.instances for run in runs] == [(0, 4, 8), (1, 5, 9), (2, 6), (3, 7)]
    evaluator = Evaluator("2025", pathlib.Path("/results/a b"), env_wrapper="my.Wrapper", testset="hidden")
    assert shlex.split(runs[0].command(evaluator)) == [
        *("python", "OmniGibson/omnigibson/learning/eval.py", "policy=websocket", "task.name=chop_an_onion"),
        *("log_path='/results/a b'", "model.host=gpu-3.local", "model.port=8001", "eval_instance_ids=[0,4,8]"),
        *("env_wrapper._target_=my.Wrapper", "test_hidden=true", "write_video=true"),
    ]


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_are_played_once_and_each_stays_with_its_endpoint(generation, count):
    """Whatever is finished and whichever other tasks are played."""

    def endpoints_of(tasks, finished=frozenset()):
        runs = evaluator_commands.plan(
            tasks, range(10), ENDPOINTS[:count], generation=generation, finished=finished, environments=4
        )
        pairs = [
            ((run.task, instance), run.endpoints[index % len(run.endpoints)])
            for run in runs
            for index, instance in enumerate(run.instances)
        ]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    first = endpoints_of(TASKS)
    assert first.keys() == {(task, instance) for task in TASKS for instance in range(10)}
    assert set(first.values()) == set(ENDPOINTS[:count])
    finished = frozenset(list(first)[::3])
    later = endpoints_of(TASKS, finished)
    assert later.keys() == first.keys() - finished
    assert all(first[key] == endpoint for key, endpoint in later.items())
    alone = endpoints_of({"canning_food": 48})
    assert all(first[key] == endpoint for key, endpoint in alone.items())


def test_the_rest_of_the_evaluators_flags():
    evaluator = Evaluator(
        "2026",
        pathlib.Path("/d"),
        testset="hidden",
        python="/env/bin/python",
        env_wrapper="my.Wrapper",
        robot_config=pathlib.Path("/my robot.yaml"),
        replay_action_chunk_size=16,
        write_video=False,
    )
    line = Run("canning_food", (0,), ("h:1",)).command(evaluator)
    assert line.startswith("/env/bin/python -m omnigibson.eval.eval --task-name canning_food --host h --port 1 ")
    assert " --mode hidden_test " in line
    assert line.endswith(
        "--env-wrapper my.Wrapper --robot-config '/my robot.yaml' --replay-action-chunk-size 16 --output-dir /d"
    )


def test_what_2025_cannot_do_is_refused():
    with pytest.raises(ValueError, match="neither chunk replay nor a robot file"):
        Evaluator("2025", pathlib.Path("/d"), replay_action_chunk_size=8)
    with pytest.raises(ValueError, match="at least two actions, got 1"):
        Evaluator("2026", pathlib.Path("/d"), replay_action_chunk_size=1)
    evaluator = Evaluator("2025", pathlib.Path("/it's"))
    with pytest.raises(ValueError, match="a sign that Hydra reads as its own"):
        Run("canning_food", (0,), ("h:1",)).command(evaluator)


@pytest.mark.parametrize("endpoint", ["localhost", "h:0", "h:65536", "ws://h:1", "h:1;rm", ":1", "h:1\n"])
def test_what_is_no_endpoint_is_refused(endpoint):
    with pytest.raises(ValueError, match="is no HOST:PORT, such as"):
        evaluator_commands.plan(TASKS, [0], [endpoint], generation="2026")


def test_plans_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="give at least one, and each once"):
        evaluator_commands.plan(TASKS, [0], ["h:1", "h:1"], generation="2026")
    with pytest.raises(ValueError, match="give at least one, and each once"):
        evaluator_commands.plan(TASKS, [0], [], generation="2026")
    with pytest.raises(ValueError, match="at least one environment, got 0"):
        evaluator_commands.plan(TASKS, [0], ["h:1"], generation="2026", environments=0)
    with pytest.raises(ValueError, match=r"indices within 0 \.\. 9"):
        evaluator_commands.plan(TASKS, [10], ["h:1"], generation="2025")
    with pytest.raises(ValueError, match=r"indices within 0 \.\. 19"):
        evaluator_commands.plan(TASKS, [301], ["h:1"], generation="2026")


def test_tasks_are_chosen_by_name():
    known = ["turning_on_radio", "picking_up_trash", "can_meat"]
    assert evaluator_commands.choose([], known) == {"turning_on_radio": 0, "picking_up_trash": 1, "can_meat": 2}
    assert evaluator_commands.choose(["can_meat", "turning_on_radio"], known) == {"turning_on_radio": 0, "can_meat": 2}
    with pytest.raises(ValueError, match=r"no task 'turn_on_radio' among the 3 .*did you mean turning_on_radio"):
        evaluator_commands.choose(["turn_on_radio"], known)
    with pytest.raises(ValueError, match=r"no task 'xyz'.*tasks are turning_on_radio"):
        evaluator_commands.choose(["xyz"], known)


def test_finished_instances_of_2026_are_indices_of_the_test_set():
    rollouts = [played("canning_food", 301), played("canning_food", 325), played("chop_an_onion", 310, "policy_error")]
    find = evaluator_commands.finished_instances
    assert find(rollouts[::2], generation="2026", testset="public") == {("canning_food", 0), ("chop_an_onion", 9)}
    assert ("canning_food", 4) in find(rollouts, generation="2026", testset="hidden")
    again = find(rollouts[::2], generation="2026", testset="public", repeat_failed=True)
    assert again == {("canning_food", 0)}


def test_finished_instances_of_2025_need_its_table(tmp_path):
    find = evaluator_commands.finished_instances
    rollouts = [played("chop_an_onion", 77), played("chop_an_onion", 5)]
    assert find([], generation="2025", testset="public") == frozenset()
    assert find(rollouts, generation="2025", testset="hidden") == {("chop_an_onion", 77), ("chop_an_onion", 5)}
    with pytest.raises(ValueError, match="give it as --test-instances"):
        find(rollouts, generation="2025", testset="public")
    table = tmp_path / "test_instances.csv"
    table.write_text('number,task,public\n42,chop_an_onion,"9, 77,3,4,5,6,7,8,10,11,12,13"\n')
    assert find(rollouts, generation="2025", testset="public", test_instances=table) == {
        ("chop_an_onion", 1),
        ("chop_an_onion", 4),
    }
    assert evaluator_commands.public_instances_2025(table)["chop_an_onion"][-1] == 11  # the first ten count
    with pytest.raises(ValueError, match="canning_food is not in"):
        find([played("canning_food", 1)], generation="2025", testset="public", test_instances=table)
    table.write_text("number,task\n1,x\n")
    with pytest.raises(ValueError, match=r"is no test_instances\.csv"):
        find(rollouts, generation="2025", testset="public", test_instances=table)


def test_bash_runs_the_command_of_its_number(tmp_path):
    """The script itself, with a program that prints its arguments in place of the simulator."""
    script = tmp_path / "jobs" / "eval.sbatch"
    commands = [shlex.join(["printf", "<%s>", "it's", "a b", "$HOME", "*", f"{number}"]) for number in range(3)]
    slurm.write_script(script, commands, logs=tmp_path / "logs", at_once=2)
    assert (tmp_path / "logs").is_dir()
    assert "#SBATCH --array=0-2%2" in script.read_text().splitlines()
    assert [path.name for path in script.parent.iterdir()] == ["eval.sbatch"]

    def done(number):
        env = {"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/usr/bin:/bin"}
        return subprocess.run([script], env=env, capture_output=True, text=True, check=False)

    for number in range(3):
        assert done(number).stdout == f"<it's><a b><$HOME><*><{number}>"
    assert done(3).returncode == 2
    assert done(3).stderr == "no command 3; there are 3\n"


def test_a_script_without_commands_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to run"):
        slurm.script([], logs=tmp_path, at_once=1)
    with pytest.raises(ValueError, match="at least one job runs at a time"):
        slurm.script(["true"], logs=tmp_path, at_once=0)
    with pytest.raises(ValueError, match="a sign that Slurm reads as its own"):
        slurm.write_script(tmp_path / "s", ["true"], logs=tmp_path / "100%", at_once=1)
    assert list(tmp_path.iterdir()) == []
