"""`evaluate.py commands` and `collect` as a user types them."""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import zipfile

import pytest
import tyro

from openpi_b1k.evaluation.commands import COMMANDS, Collect, Commands
from openpi_b1k.evaluation.rollout_commands import task_names
from openpi_b1k.rollouts import results

REPOSITORY = pathlib.Path(__file__).parents[2]


def run(*args):
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=[str(arg) for arg in args]).run()


def play(directory, task="canning_food", instance_id=301, q_score=0.0):
    failed = results.failed(task, instance_id, 0, "policy_error", 5)
    played = dataclasses.replace(failed, failure_reason=None, q_score=q_score, success=q_score == 1)
    return results.write(directory, played)


@pytest.fixture
def submission(tmp_path):
    for name in ("wrapper.py", "robot.yaml", "README.md"):
        (tmp_path / name).write_text(name)
    return (
        *("--team", "My Team", "--affiliation", "Uni", "--date", "2026-10-16", "--wrapper", tmp_path / "wrapper.py"),
        *("--robot-config", tmp_path / "robot.yaml", "--readme", tmp_path / "README.md"),
    )


def test_tasks_are_those_of_the_generation():
    assert (len(task_names("2025")), len(task_names("2026"))) == (50, 100)
    assert task_names("2026")[:50] == task_names("2025")


def test_all_tasks_are_planned_and_finished_ones_left_out(tmp_path):
    first, *lines = run("commands", "--endpoints", "h:1", "--output-dir", tmp_path / "none").splitlines()
    assert first == f"# 1000 of 1000 rollouts in 100 runs; 0 are finished in {tmp_path / 'none'}"
    assert len(lines) == 100
    play(tmp_path, "turning_on_radio", 301)
    results.write(tmp_path, results.failed("turning_on_radio", 302, 0, "policy_error", 5))
    asked = ("commands", "--endpoints", "h:1", "--output-dir", tmp_path, "--tasks", "turning_on_radio")
    note, given_up, line = run(*asked, "--instances", "0", "1", "2").splitlines()
    assert note == f"# 1 of 3 rollouts in 1 runs; 2 are finished in {tmp_path}"
    assert given_up.endswith("given up by the evaluator and count 0; --repeat-failed plays them again")
    words = shlex.split(line)
    assert words[words.index("--instance-indices") : words.index("--num-envs")] == ["--instance-indices", "2"]
    line = run(*asked, "--instances", "0", "1", "2", "--repeat-failed").splitlines()[-1]
    assert " --instance-indices 1 2 --num-envs 2 " in line


def test_paths_are_absolute_since_the_evaluator_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("commands", "--endpoints", "h:1", "--output-dir", "my out", "--tasks", "canning_food")
    words = shlex.split(run(*asked, "--robot-config", "r.yaml", "--no-video").splitlines()[-1])
    assert words[-4:] == ["--robot-config", str(tmp_path / "r.yaml"), "--output-dir", str(tmp_path / "my out")]


def test_a_slurm_script_runs_the_same_commands(tmp_path):
    asked = ("commands", "--endpoints", "h:1", "g:2", "--output-dir", tmp_path / "out", "--generation", "2025")
    commands = run(*asked, "--tasks", "canning_food").splitlines()[1:]
    script = tmp_path / "my jobs.sbatch"
    text = run(*asked, "--tasks", "canning_food", "--slurm", script)
    assert text.splitlines()[-1] == f"sbatch '{script}'"
    lines = script.read_text().splitlines()
    assert "#SBATCH --array=0-1%2" in lines
    assert [f"{number}) exec {command} ;;" for number, command in enumerate(commands)] == lines[-4:-2]
    assert (tmp_path / "out" / "logs").is_dir()


def test_scores_are_printed_compared_and_written(tmp_path):
    for instance in range(301, 311):
        play(tmp_path / "good", instance_id=instance, q_score=1.0)
        play(tmp_path / "bad", instance_id=instance)
    text = run(
        *("collect", "--input", tmp_path / "good", "--against", tmp_path / "bad", "--json", tmp_path / "new" / "s.json")
    )
    assert "100 tasks x 20 rollouts; the 1990 that were not played count 0" in text
    assert text.splitlines()[-1] == "these are better than the others, by 10 paired rollouts"
    facts = json.loads((tmp_path / "new" / "s.json").read_text())
    assert facts["per_task_scores"]["q_score"]["canning_food"] == 0.5
    assert facts["overall_scores"]["task_sr"] == pytest.approx(0.005)
    text = run("collect", "--input", tmp_path / "good", "--instances-per-task", 10)
    assert "100 tasks x 10 rollouts; the 990 that were not played count 0" in text


def test_a_submission_is_made(tmp_path, submission):
    path = play(tmp_path / "in")
    text = run("collect", "--input", tmp_path / "in", "--output", tmp_path / "z.zip", *submission)
    folder = "standard.public.My_Team.Uni.2026-10-16"
    assert text.splitlines()[-2] == f"wrote {tmp_path / 'z.zip'} and {tmp_path / folder} with 1 rollouts"
    assert text.splitlines()[-1].startswith("1 rollouts have no video, the first is canning_food_301_0")
    with zipfile.ZipFile(tmp_path / "z.zip") as packed:
        assert packed.read(f"{folder}/json/{path.name}") == path.read_bytes()


def test_the_date_is_todays_unless_given(tmp_path, submission):
    play(tmp_path / "in")
    at = submission.index("--date")
    args = (*submission[:at], *submission[at + 2 :])
    assert ".Uni.20" in run("collect", "--input", tmp_path / "in", "--output", tmp_path / "z.zip", *args)


def test_a_submission_that_lacks_something_is_refused(tmp_path):
    play(tmp_path / "in")
    with pytest.raises(ValueError, match="also needs --affiliation, --wrapper, --robot-config, --readme; without"):
        run("collect", "--input", tmp_path / "in", "--output", tmp_path / "z.zip", "--team", "x")
    assert not (tmp_path / "z.zip").exists()


def test_the_commands_of_the_docs_can_be_typed():
    text = (REPOSITORY / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("uv run scripts/evaluate.py ")]
    typed = [shlex.split(line, comments=True)[3:] for line in lines]
    assert {"commands", "collect"} <= {args[0] for args in typed}
    for args in typed:
        assert isinstance(tyro.extras.subcommand_cli_from_dict(COMMANDS, args=args), COMMANDS[args[0]])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("commands", "--endpoints", "h:1", "--tasks", "can_foods", "--output-dir", "x"), "did you mean can"),
        (("commands", "--endpoints", "h", "--output-dir", "x"), "error: 'h' is no HOST:PORT"),
        (("collect", "--input", "nowhere"), "error: no rollouts in nowhere"),
    ],
)
def test_errors_are_one_line(args, message):
    command = [sys.executable, REPOSITORY / "scripts" / "evaluate.py", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_arguments_load_no_numpy():
    """So that --help answers at once."""
    code = "import sys, openpi_b1k.evaluation.rollout_commands; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "False\n"
    assert {Commands, Collect} <= set(COMMANDS.values())
