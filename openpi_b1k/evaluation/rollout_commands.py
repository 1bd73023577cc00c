"""The subcommands of `scripts/evaluate.py` around the real simulator: what to run, and what came out of it."""

import dataclasses
import datetime as dt
import pathlib
import shlex
from typing import TYPE_CHECKING, Literal

from openpi_b1k.config.data import Generation
from openpi_b1k.serving.tasks import NUM_TASKS_2025, TASK_NAMES

if TYPE_CHECKING:
    from openpi_b1k.rollouts import submission

Testset = Literal["public", "hidden"]


@dataclasses.dataclass(frozen=True)
class Commands:
    """Prints the evaluator's command lines for tasks and instances over policy servers, less what is finished.

    Every (task, instance) stays with one endpoint as long as the endpoints and their order are the same.
    """

    endpoints: tuple[str, ...]
    """HOST:PORT of the policy servers."""
    output_dir: pathlib.Path
    """Where the evaluator writes rollouts, and where finished ones are looked for."""
    tasks: tuple[str, ...] = ()
    """Names; default: all of the generation."""
    generation: Generation = "2026"
    instances: tuple[int, ...] = tuple(range(10))
    """Indices within the test set; the rules ask for 0 .. 9, and the scorer shipped in 2026 divides by 20."""
    testset: Testset = "public"
    environments: int = 10
    """Instances that one simulator plays at the same time, at most (2026)."""
    repeat_failed: bool = False
    """Play rollouts again that the evaluator gave up (a lost connection, a timeout); by the rules they count 0."""
    test_instances: pathlib.Path | None = None
    """BEHAVIOR-1K's 2025-challenge-task-instances/metadata/test_instances.csv, to know what of 2025 is finished."""
    env_wrapper: str | None = None
    """Class path; default: the official RGB-D wrapper of 2026, the evaluator's own default of 2025."""
    robot_config: pathlib.Path | None = None
    """A robot's yaml file (2026); default: the evaluator's."""
    replay_action_chunk_size: int | None = None
    """Actions the evaluator executes without asking (2026)."""
    video: bool = True
    """Also write videos; a submission needs a link to them."""
    python: str = "python"
    """The interpreter that has the simulator."""
    behavior_1k: pathlib.Path = pathlib.Path()
    """The checkout of BEHAVIOR-1K, whose script is called (2025)."""
    slurm: pathlib.Path | None = None
    """Write a Slurm array script here and print only how to submit it."""
    at_once: int | None = None
    """Slurm jobs at the same time; default: as many as there are endpoints."""

    def run(self) -> str:
        """Returns the command lines, or how to submit the script.

        Raises:
            ValueError: an argument is not possible, or a file in the output directory is no rollout.
            FileNotFoundError: a file that was named is not there.
        """
        from openpi_b1k.rollouts import evaluator_commands as evaluator  # noqa: PLC0415  # so that --help answers at once
        from openpi_b1k.rollouts import results, slurm  # noqa: PLC0415

        output_dir = self.output_dir.expanduser().absolute()
        tasks = evaluator.choose(self.tasks, task_names(self.generation))
        written = (output_dir / results.FOLDERS[self.generation]).is_dir()
        rollouts = results.read_all(output_dir) if written else []
        finished = evaluator.finished_instances(
            rollouts,
            generation=self.generation,
            testset=self.testset,
            test_instances=self.test_instances,
            repeat_failed=self.repeat_failed,
        )
        runs = evaluator.plan(
            tasks,
            self.instances,
            self.endpoints,
            generation=self.generation,
            finished=finished,
            environments=self.environments,
        )
        how = evaluator.Evaluator(
            self.generation,
            output_dir,
            testset=self.testset,
            python=self.python,
            env_wrapper=self.env_wrapper,
            robot_config=None if self.robot_config is None else self.robot_config.expanduser().absolute(),
            replay_action_chunk_size=self.replay_action_chunk_size,
            write_video=self.video,
            behavior_1k=self.behavior_1k.expanduser(),
        )
        commands = [run.command(how) for run in runs]
        left = sum(len(run.instances) for run in runs)
        asked = len(tasks) * len(set(self.instances))
        note = f"# {left} of {asked} rollouts in {len(runs)} runs; {asked - left} are finished in {output_dir}"
        if given_up := sum(rollout.failure_reason is not None for rollout in rollouts):
            note += f"\n# {given_up} rollouts there were given up by the evaluator"
            note += ", and are played again" if self.repeat_failed else " and count 0; --repeat-failed plays them again"
        if self.slurm is None:
            return "\n".join((note, *commands))
        at_once = len(self.endpoints) if self.at_once is None else self.at_once
        slurm.write_script(self.slurm, commands, logs=output_dir / "logs", at_once=at_once)
        return f"{note}\nsbatch {shlex.quote(str(self.slurm))}"


@dataclasses.dataclass(frozen=True)
class Collect:
    """Prints the scores of the real simulator's rollouts, and makes the challenge's submission of them."""

    input: tuple[pathlib.Path, ...]
    """Output directories of the evaluator. No rollout may be in two of them."""
    generation: Generation = "2026"
    testset: Testset = "public"
    instances_per_task: int | None = None
    """What a task's sums are divided by; default: as the shipped scorer does, 20 in 2026 (the rules ask for 10)."""
    test_instances: pathlib.Path | None = None
    """BEHAVIOR-1K's 2025-challenge-task-instances/metadata/test_instances.csv, to refuse other instances of 2025."""
    against: tuple[pathlib.Path, ...] = ()
    """Output directories of another policy's rollouts, to be compared with on the same instances."""
    json: pathlib.Path | None = None
    """Where to write the official scores, overall and of each task."""
    output: pathlib.Path | None = None
    """A zip to submit; its folder is written beside it. Needs what follows."""
    team: str | None = None
    affiliation: str | None = None
    date: str | None = None
    """Default: today, as 2026-10-16."""
    track: Literal["standard", "privileged"] = "standard"
    wrapper: tuple[pathlib.Path, ...] = ()
    """The environment's wrapper, one or more .py files."""
    robot_config: pathlib.Path | None = None
    """The robot's .yaml file."""
    readme: pathlib.Path | None = None
    """A .md file: how to run the policy, the Docker image and its digest or the address, the link to all videos."""

    def run(self) -> str:
        """Returns the scores as text, with what was written.

        Raises:
            ValueError: a file is no rollout that counts, a rollout is there twice, or an argument is missing or wrong.
            FileNotFoundError: there are no rollouts, or a file to submit is not there.
            FileExistsError: the submission is there already.
        """
        from openpi_b1k.rollouts import score_report, scores, submission  # noqa: PLC0415  # as above

        tasks = task_names(self.generation)
        instances = submission.counted(
            tasks,
            generation=self.generation,
            testset=self.testset,
            instances=self.instances_per_task,
            test_instances=self.test_instances,
        )
        found = submission.find(self.input, generation=self.generation, instances=instances)
        official = scores.official(
            found.rollouts, generation=self.generation, tasks=tasks, instances=self.instances_per_task
        )
        parts = [score_report.text(found.rollouts, official, generation=self.generation)]
        if self.against:
            others = submission.find(self.against, generation=self.generation, instances=instances)
            parts.append(scores.compare(found.rollouts, others.rollouts).summary())
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(official.to_json(), encoding="utf-8")
        if self.output is not None:
            parts.append(self._submit(self.output, found))
        return "\n\n".join(parts)

    def _submit(self, output: pathlib.Path, found: "submission.Found") -> str:
        """Writes the submission and returns what is to be said about it."""
        from openpi_b1k.rollouts import submission  # noqa: PLC0415  # so that --help answers at once

        needed = {"team": self.team, "affiliation": self.affiliation, "wrapper": self.wrapper}
        needed |= {"robot-config": self.robot_config, "readme": self.readme}
        if missing := [f"--{name}" for name, value in needed.items() if not value]:
            raise ValueError(f"a submission also needs {', '.join(missing)}; without --output only scores are printed")
        folder = submission.name(
            track=self.track,
            testset=self.testset,
            team=self.team or "",
            affiliation=self.affiliation or "",
            date=self.date or dt.date.today().isoformat(),
            generation=self.generation,
        )
        extras = [path for path in (*self.wrapper, self.robot_config, self.readme) if path is not None]
        target = submission.write(output, folder, found, extras)
        text = f"wrote {output} and {target} with {len(found.paths)} rollouts"
        if missing := submission.without_video(found):
            text += f"\n{len(missing)} rollouts have no video, the first is {missing[0]}; a link to each is asked for"
        return text


def task_names(generation: Generation) -> tuple[str, ...]:
    """Returns the names of a generation's tasks, by number."""
    return TASK_NAMES[:NUM_TASKS_2025] if generation == "2025" else TASK_NAMES
