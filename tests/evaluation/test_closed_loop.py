import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.config import serialize
from openpi_b1k.evaluation import closed_loop
from openpi_b1k.evaluation.closed_loop import Result, ablated_sample, evaluate, play
from openpi_b1k.robots.r1pro import ACTION
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.sample.world import GOALS, MAX_STEPS, Expert
from openpi_b1k.serving import jax_backend
from scripts import evaluate as script
from tests import sample_cases

NUM = sample_cases.NUM_EPISODES
OUTCOME = {"task", "success", "steps", "pressed"}


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


def environments(num, generation="2025"):
    return [SampleEnvironment(generation, 0, episode) for episode in range(num)]


def expert_chunks(horizon):
    """Returns a policy that knows the world: the expert, played ahead in a copy of each environment."""

    def next_chunks(envs, start):
        del start
        chunks = np.zeros((len(envs), horizon, ACTION.size), np.float32)
        for chunk, env in zip(chunks, envs, strict=True):
            ahead = SampleEnvironment("2025", 0, 0)
            ahead.world = copy_world(env.world)
            expert = Expert(ahead.world)
            for action in chunk:
                action[:] = expert.action()
                ahead.world.step(action)
        return chunks

    return next_chunks


def copy_world(world):
    copied = object.__new__(type(world))
    copied.__dict__ = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(world).items()}
    copied.__dict__.pop("step", None)  # a test may watch the original's
    return copied


def test_an_evaluation_says_what_happened_in_every_episode(sample_checkpoint):
    result = evaluate(sample_checkpoint, episodes=NUM, seed=1)
    assert (result.seed, result.ablate, result.checkpoint) == (1, "none", str(sample_checkpoint))
    assert [outcome["task"] for outcome in result.outcomes] == [goal.task_name for goal in GOALS]
    for outcome in result.outcomes:
        assert set(outcome) == OUTCOME
        assert outcome["steps"] == MAX_STEPS if outcome["pressed"] is None else outcome["steps"] <= MAX_STEPS
    assert evaluate(sample_checkpoint, episodes=NUM, seed=1) == result
    written = json.loads(result.to_json())
    assert written["episodes"] == NUM
    assert written["successes"] == result.num_successes == round(NUM * written["success_rate"])
    assert [set(outcome) for outcome in written["outcomes"]] == [OUTCOME] * NUM


@pytest.mark.parametrize("ablate", ["prompt", "images", "weights", "demonstration"])
def test_every_control_plays_all_episodes(sample_checkpoint, ablate):
    result = evaluate(sample_checkpoint, episodes=NUM, seed=1, ablate=ablate, execution_horizon=20)
    assert (len(result.outcomes), result.ablate) == (NUM, ablate)


def test_the_generation_is_the_checkpoints(sample_checkpoint, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(closed_loop, "play", lambda environments, *_: made.extend(environments))
    evaluate(changed_copy(sample_checkpoint, tmp_path, generation="2026"), episodes=NUM)
    assert [environment.layout.size for environment in made] == [61] * NUM


@pytest.mark.parametrize("execution_horizon", [7, 25])
def test_the_expert_succeeds_through_the_same_interface(execution_horizon):
    envs = environments(12)
    play(envs, expert_chunks(25), execution_horizon)
    assert all(environment.world.is_success for environment in envs)


def test_play_asks_for_a_chunk_when_the_last_one_is_done_and_steps_nothing_that_is_over():
    asked, stepped = [], []
    envs = environments(2)
    chunks_of = expert_chunks(25)
    for environment in envs:
        step = environment.world.step
        environment.world.step = lambda action, *, step=step, world=environment.world: (
            stepped.append(world.is_over),
            step(action),
        )

    def next_chunks(playing, start):
        asked.append(start)
        assert playing == envs
        chunks = chunks_of(playing, start)
        chunks[1] = 1.0  # never closes a gripper
        return chunks

    play(envs, next_chunks, 10)
    assert asked == list(range(0, MAX_STEPS, 10))
    assert [environment.world.num_steps for environment in envs] == [envs[0].world.num_steps, MAX_STEPS]
    assert envs[0].world.is_success
    assert not any(stepped)
    assert len(stepped) == sum(environment.world.num_steps for environment in envs)


def test_play_ends_when_all_episodes_have():
    asked = []
    envs = environments(4)

    def next_chunks(playing, start):
        asked.append(start)
        return expert_chunks(25)(playing, start)

    play(envs, next_chunks, 25)
    longest = max(environment.world.num_steps for environment in envs)
    assert asked == list(range(0, longest, 25))


def test_what_the_ablated_policy_sees(sample_checkpoint):
    policy = jax_backend.load(sample_checkpoint)
    environment = environments(3)[2]
    plain, other, blank = (ablated_sample(policy, environment, ablate) for ablate in ("none", "prompt", "images"))
    assert plain["prompt"] == environment.goal.prompt
    assert other["prompt"] in {goal.prompt for goal in GOALS} - {environment.goal.prompt}
    assert blank["prompt"] == plain["prompt"]
    for name, image in plain["images"].items():
        np.testing.assert_array_equal(other["images"][name], image)
        assert image.any()
        assert not blank["images"][name].any()
        assert blank["images"][name].shape == image.shape


def test_the_last_line():
    outcomes = tuple({"task": "", "success": i < 48, "steps": 1, "pressed": None} for i in range(50))
    assert Result("dir", 0, "none", outcomes).summary() == "closed-loop success 0.96 (48 of 50)"


def test_other_data_are_refused(sample_checkpoint, tmp_path):
    copy = changed_copy(sample_checkpoint, tmp_path, source="b1k", sample_demos=0)
    with pytest.raises(ValueError, match="was trained on data source 'b1k'; the sample world can only play"):
        evaluate(copy, episodes=NUM)


@pytest.mark.parametrize(("episodes", "execution_horizon"), [(0, None), (NUM, 0), (NUM, 26)])
def test_numbers_out_of_range_are_refused(sample_checkpoint, episodes, execution_horizon):
    message = "episodes must be at least 1 and execution_horizon in [1, 25]; got"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(sample_checkpoint, episodes=episodes, execution_horizon=execution_horizon)


def test_a_negative_seed_and_a_task_that_was_not_trained_are_refused(sample_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="seed must not be negative"):
        evaluate(sample_checkpoint, episodes=NUM, seed=-1_000_000)
    copy = shutil.copytree(sample_checkpoint, tmp_path / "1")
    prompts = json.loads((copy / contents.PROMPTS_FILE).read_text())
    del prompts["press_blue_button_with_left_gripper"]
    (copy / contents.PROMPTS_FILE).write_text(json.dumps(prompts))
    with pytest.raises(ValueError, match="was not trained on press_blue_button_with_left_gripper; all tasks of"):
        evaluate(copy, episodes=NUM)


def test_the_script_ends_with_the_rate_and_writes_the_outcomes(sample_checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "result.json"
    assert script.run(script.ClosedLoop(sample_checkpoint, episodes=NUM, ablate="demonstration", json=file)) == 0
    written = json.loads(file.read_text())
    last = f"closed-loop success {written['success_rate']:.2f} ({written['successes']} of {NUM})"
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_the_script_tells_what_is_wrong(tmp_path, capsys):
    assert script.run(script.ClosedLoop(tmp_path)) == 2
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
