"""The sample world played with a real checkpoint: outcomes, controls, files, comparisons, and the command."""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.config import serialize
from openpi_b1k.evaluation.closed_loop import sample_world
from openpi_b1k.evaluation.closed_loop.ablations import BLINDS
from openpi_b1k.evaluation.closed_loop.outcome import Result, Rivals
from openpi_b1k.evaluation.closed_loop.sample_world import evaluate, play_checkpoint
from openpi_b1k.evaluation.closed_loop.served import served
from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.evaluation.closed_loop_command import ClosedLoop, parse_address
from openpi_b1k.rollouts import recordings, results
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.sample.world import GOALS, MAX_STEPS
from scripts import evaluate as script
from tests import sample_cases

NUM = sample_cases.NUM_EPISODES
OUTCOME = {"task", "instance_id", "success", "q_score", "steps", "pressed", "failure_reason"}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


def changed_copy(checkpoint, directory, **data):
    """Returns a copy of a checkpoint whose config says something else of the data."""
    copy = shutil.copytree(checkpoint, directory / "1")
    config = contents.read_config(copy)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    (copy / contents.CONFIG_FILE).write_text(serialize.to_json(config))
    return copy


def rollout(number=0, *, success=True, reason=None, task="press"):
    if reason is not None:
        return results.failed(task, number, 0, reason, 3)
    ways = dict.fromkeys(results.PARTS, 1.0)
    return results.Rollout(task, number, 0, 10, success, float(success), ways, ways, 10, 1 / 3, 1.0)


def result_of(*rollouts):
    return Result("dir", 0, "none", rollouts, (None,) * len(rollouts))


def test_an_evaluation_says_what_happened_in_every_episode(sample_checkpoint):
    result = evaluate(sample_checkpoint, episodes=NUM, seed=1)
    assert (result.seed, result.ablate, result.policy) == (1, "none", str(sample_checkpoint))
    assert [outcome["task"] for outcome in result.outcomes] == [goal.task_name for goal in GOALS]
    assert [outcome["instance_id"] for outcome in result.outcomes] == [10_000, 10_001, 10_002, 10_003]
    for outcome in result.outcomes:
        assert set(outcome) == OUTCOME
        assert outcome["failure_reason"] is None
        assert outcome["steps"] == MAX_STEPS if outcome["pressed"] is None else outcome["steps"] <= MAX_STEPS
    assert evaluate(sample_checkpoint, episodes=NUM, seed=1) == result
    written = json.loads(result.to_json())
    assert written["episodes"] == NUM
    assert written["successes"] == result.num_successes == round(NUM * written["success_rate"])
    assert written["q_score"] == np.mean([outcome["q_score"] for outcome in result.outcomes])
    assert [set(outcome) for outcome in written["outcomes"]] == [OUTCOME] * NUM


def test_asking_at_every_step_gives_what_whole_chunks_give(sample_checkpoint):
    settings = Settings(episodes=NUM, seed=1, execution_horizon=25)
    step_by_step = play_checkpoint(sample_checkpoint, settings)
    assert step_by_step == evaluate(sample_checkpoint, episodes=NUM, seed=1)
    assert step_by_step.timing["decode_ms"]["count"] == max(one.steps for one in step_by_step.rollouts)
    assert step_by_step.timing["model_ms"]["count"] == -(-max(one.steps for one in step_by_step.rollouts) // 25)
    assert step_by_step.timing["model_ms"]["p50"] <= step_by_step.timing["model_ms"]["p99"]


def test_every_control_plays_all_episodes_and_acts_otherwise(sample_checkpoint):
    ways = []
    for ablate in ("none", "prompt", "images", "weights", "demonstration"):
        result = evaluate(sample_checkpoint, episodes=NUM, seed=1, ablate=ablate, execution_horizon=25)
        assert (len(result.outcomes), result.ablate) == (NUM, ablate)
        assert not any(one.failure_reason for one in result.rollouts)
        ways.append(tuple(one.agent_distance["left"] for one in result.rollouts))
    assert len(set(ways)) == 5


@pytest.mark.parametrize(("generation", "size"), [(None, 61), ("2025", 256)])
def test_the_generation_is_the_checkpoints_if_not_told(sample_checkpoint, tmp_path, monkeypatch, generation, size):
    made = []
    monkeypatch.setattr(sample_world, "play", lambda episodes, *_: made.extend(episodes) or ["policy_error"] * NUM)
    copy = changed_copy(sample_checkpoint, tmp_path, generation="2026")
    play_checkpoint(copy, Settings(episodes=NUM, ablate="demonstration", generation=generation))
    assert [episode.observation()["robot_r1::proprio"].size for episode in made] == [size] * NUM


def test_the_protocol_of_2025_plays_one_after_the_other(sample_checkpoint, monkeypatch):
    groups, play = [], sample_world.play
    monkeypatch.setattr(sample_world, "play", lambda group, *rest: groups.append(len(group)) or play(group, *rest))
    settings = Settings(episodes=2, protocol="2025", execution_horizon=25)
    assert not any(one.failure_reason for one in play_checkpoint(sample_checkpoint, settings).rollouts)
    assert groups == [1, 1]
    groups.clear()
    settings = Settings(episodes=3, num_envs=2, execution_horizon=25)
    assert not any(one.failure_reason for one in play_checkpoint(sample_checkpoint, settings).rollouts)
    assert groups == [2, 1]


def test_what_the_ablated_policy_is_sent():
    observation = SampleEnvironment("2025", 0, 3).observation()
    for ablate in ("none", "weights", "demonstration"):
        assert BLINDS[ablate](observation) is observation
    other, blank = BLINDS["prompt"](observation), BLINDS["images"](observation)
    assert other.pop("prompt") == GOALS[0].prompt
    assert set(other) == set(blank) == set(observation)
    for key, value in observation.items():
        np.testing.assert_array_equal(other[key], value)
        assert (blank[key].shape, blank[key].dtype) == (value.shape, value.dtype)
        assert value.any() or key == "task_id"
        assert bool(blank[key].any()) == ("Camera" not in key)


def test_all_files_of_a_rollout_are_written(sample_checkpoint, tmp_path):
    settings = Settings(episodes=NUM, execution_horizon=25, output_dir=tmp_path, write_video=True, record=True)
    result = play_checkpoint(sample_checkpoint, settings)
    assert sorted(results.read_all(tmp_path), key=lambda one: one.instance_id) == list(result.rollouts)
    assert [path.name for path in recordings.list_recordings(tmp_path)] == sorted(one.stem for one in result.rollouts)
    for one, goal in zip(result.rollouts, GOALS, strict=True):
        recording = recordings.open_recording(tmp_path / "recordings" / one.stem)
        assert (recording.length, recording.success, recording.prompt) == (one.steps, one.success, goal.prompt)
        environment = SampleEnvironment("2025", 0, one.instance_id)
        for proprio, action in zip(recording.proprio, recording.action, strict=True):
            np.testing.assert_array_equal(environment.observation()["robot_r1::proprio"], proprio)
            environment.step(action)
        assert environment.world.is_over  # the recorded actions are those that were executed
        with av.open(str(tmp_path / "videos" / f"{one.stem}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width, stream.frames) == (448, 672, one.steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json", "recordings", "videos"]
    assert len(list((tmp_path / "videos").iterdir())) == NUM
    with pytest.raises(FileExistsError, match=r"has 4 of these rollouts already, the first is press_red_.*_0_0\.json"):
        play_checkpoint(sample_checkpoint, settings)


def test_the_last_line():
    result = result_of(*(rollout(i, success=i < 48) for i in range(50)))
    assert result.summary() == result.report().splitlines()[-1] == "closed-loop success 0.96 (48 of 50)"


def test_the_report_tells_tasks_intervals_failures_and_times():
    result = result_of(rollout(0), rollout(1, success=False), rollout(2, reason="policy_error", task="other"))
    result = dataclasses.replace(result, timing={"model_ms": {"p50": 1.23, "p99": 4.56, "count": 7}})
    lines = result.report().splitlines()
    [press] = [line for line in lines if line.startswith("press ")]
    assert "0.500 [0.095, 0.905]" in press  # Wilson's of 1 of 2
    assert "1 rollouts failed with policy_error: other_2_0" in lines
    assert "time in ms (p50 / p99): model 1.2 / 4.6" in lines
    assert dataclasses.replace(result, timing={}) == result  # time is no outcome


def test_the_report_compares_pair_by_pair():
    result = result_of(*(rollout(i) for i in range(40)))
    worse = Rivals("other", tuple(rollout(i, success=i % 2 == 0) for i in range(41)))
    lines = result.report(worse).splitlines()
    assert "against other (success 0.51, 21 of 41):" in lines
    assert any(line.startswith("success +0.500 [+0.3") for line in lines)
    assert lines[-1] == "closed-loop success 1.00 (40 of 40)"
    compared = json.loads(result.to_json(worse))["against"]
    assert (compared["name"], compared["success"][0], compared["missing_here"]) == ("other", 0.5, 1)


def test_other_data_are_refused(sample_checkpoint, tmp_path):
    copy = changed_copy(sample_checkpoint, tmp_path, source="b1k", sample_demos=0)
    with pytest.raises(ValueError, match="was trained on data source 'b1k'; the sample world can only play"):
        evaluate(copy, episodes=NUM)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "episodes must be in [1, 10000] and num_envs at least 1; got 0 and 50"),
        ({"num_envs": 0}, "episodes must be in [1, 10000] and num_envs at least 1; got 50 and 0"),
        ({"seed": -1_000_000}, "seed must not be negative, or layouts of the demonstrations could come up"),
        ({"replay_action_chunk_size": 1}, "replay_action_chunk_size must be at least 2, or left out"),
        ({"record": True}, "videos and recordings need a directory: give --output-dir DIR"),
    ],
)
def test_settings_that_cannot_be_played_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**settings)


@pytest.mark.parametrize("execution_horizon", [-1, 26])
def test_an_execution_horizon_beyond_the_chunk_is_refused(sample_checkpoint, execution_horizon):
    with pytest.raises(ValueError, match=re.escape("execution_horizon must be in [1, 25]; got")):
        play_checkpoint(sample_checkpoint, Settings(episodes=NUM, execution_horizon=execution_horizon))


def test_a_task_that_was_not_trained_is_refused(sample_checkpoint, tmp_path):
    copy = shutil.copytree(sample_checkpoint, tmp_path / "1")
    prompts = json.loads((copy / contents.PROMPTS_FILE).read_text())
    del prompts["press_blue_button_with_left_gripper"]
    (copy / contents.PROMPTS_FILE).write_text(json.dumps(prompts))
    with pytest.raises(ValueError, match="was not trained on press_blue_button_with_left_gripper; all tasks of"):
        evaluate(copy, episodes=NUM)


def test_the_script_ends_with_the_rate_and_writes_the_outcomes(sample_checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "result.json"
    command = ClosedLoop(checkpoint=sample_checkpoint, episodes=NUM, ablate="demonstration", json=file)
    assert script.run(command) == 0
    written = json.loads(file.read_text())
    last = f"closed-loop success {written['success_rate']:.2f} ({written['successes']} of {NUM})"
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_the_script_compares_with_files_and_with_a_checkpoint(sample_checkpoint, tmp_path, capsys):
    options = {"checkpoint": sample_checkpoint, "episodes": NUM, "ablate": "demonstration"}
    assert script.run(ClosedLoop(**options, output_dir=tmp_path / "a")) == 0
    for against in (tmp_path / "a", sample_checkpoint):
        assert script.run(ClosedLoop(**options, output_dir=tmp_path / against.name / "b", against=against)) == 0
        told = capsys.readouterr().out
        assert f"against {against} (success " in told
        assert "which is better cannot be told: no difference in the mean of 4 paired rollouts" in told
    assert script.run(ClosedLoop(**options, against=tmp_path)) == 2
    assert "is neither a checkpoint (no config.json) nor an --output-dir with results" in capsys.readouterr().err


def test_a_running_server_is_played_at_one_endpoint_or_one_for_each(sample_checkpoint, capsys, tmp_path):
    settings = Settings(episodes=NUM, execution_horizon=25, generation="2025")
    with contextlib.ExitStack() as exits:
        ports = [exits.enter_context(served(sample_checkpoint, settings)).port for _ in range(2)]
        remote = {"episodes": NUM, "replay_action_chunk_size": 25, "generation": "2025"}
        assert script.run(ClosedLoop(**remote, host="127.0.0.1", port=ports[0])) == 0
        endpoints = tuple(f"127.0.0.1:{port}" for port in ports)
        assert script.run(ClosedLoop(**remote, policy_endpoints=endpoints, output_dir=tmp_path)) == 0
    assert len(re.findall(r"^closed-loop success \d\.\d\d \(\d of 4\)$", capsys.readouterr().out, re.M)) == 2
    assert not any(one.failure_reason for one in results.read_all(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --checkpoint DIR, --host HOST and --policy-endpoints"),
        ({"host": "a", "policy_endpoints": ("a:1",)}, "give one of --checkpoint DIR"),
        ({"host": "a", "ablate": "weights"}, "--ablate weights, --ablate demonstration and --execution-horizon need"),
        ({"host": "a", "execution_horizon": 3}, "need --checkpoint: a running server has its own"),
    ],
)
def test_who_is_played_is_said_once(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClosedLoop(**options)


@pytest.mark.parametrize("text", ["localhost", ":80", "a:", "a:b", "a:0", "a:70000"])
def test_what_is_no_address_is_refused(text):
    assert parse_address("a.b:80") == ("a.b", 80)
    with pytest.raises(ValueError, match=f"an endpoint is HOST:PORT, such as 127.0.0.1:8000; got {text!r}"):
        parse_address(text)


def test_the_script_tells_what_is_wrong(tmp_path, capsys):
    assert script.run(ClosedLoop(checkpoint=tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"error: no config at {tmp_path}")


def test_the_scripts_command_line(tmp_path):
    command = [sys.executable, "scripts/evaluate.py", "closed-loop"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--ablate {none,prompt,images,weights,demonstration}" in done.stdout
    command += ["--checkpoint", "x", "--ablate", "image"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "images" in done.stderr
