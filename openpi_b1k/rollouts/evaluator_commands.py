"""The evaluator's own command lines for tasks and instances over the servers at hand, less what is finished.

Every (task, instance) belongs to one endpoint, whatever else is played and in however many goes: the rules ask for it.
2026 plays the instances of a run at the same time, on one connection (one endpoint) or on one each
(`--policy-endpoints`). 2025 plays them one after another, so its runs of different endpoints go side by side.
Source: BEHAVIOR-1K, OmniGibson/omnigibson/{learning/eval.py, eval/eval.py}.
"""

import collections
import csv
import dataclasses
import difflib
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from openpi_b1k.config.data import Generation
from openpi_b1k.rollouts.results import Rollout
from openpi_b1k.rollouts.scores import INSTANCES

Testset = Literal["public", "hidden"]

FIRST_INSTANCE = {"public": 301, "hidden": 321}
"""Of 2026: the instance with index 0."""
OFFICIAL_WRAPPER_2026 = "omnigibson.eval.wrappers.RGBDFullResWrapper"

_ENDPOINT = re.compile(r"(?P<host>[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_PLAIN_HYDRA_VALUE = re.compile(r"[A-Za-z0-9_./:\-]+")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """How the evaluator is called."""

    generation: Generation
    output_dir: pathlib.Path
    testset: Testset = "public"
    python: str = "python"
    env_wrapper: str | None = None
    """Class path; default: the official wrapper of 2026, the evaluator's own default in 2025."""
    robot_config: pathlib.Path | None = None
    replay_action_chunk_size: int | None = None
    """Of 2026: actions executed without asking the server."""
    write_video: bool = True
    behavior_1k: pathlib.Path = pathlib.Path()
    """Of 2025: the checkout of BEHAVIOR-1K, whose script is called; default: where the command is run."""

    def __post_init__(self) -> None:
        """Refuses what 2025's evaluator cannot do.

        Raises:
            ValueError: chunk replay or a robot file with 2025, or a chunk of fewer than two actions.
        """
        if self.generation == "2025" and (self.replay_action_chunk_size is not None or self.robot_config is not None):
            raise ValueError(
                "the evaluator of 2025 has neither chunk replay nor a robot file to choose; leave both out"
            )
        if self.replay_action_chunk_size is not None and self.replay_action_chunk_size < 2:
            raise ValueError(f"a replayed chunk has at least two actions, got {self.replay_action_chunk_size}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the evaluator."""

    task: str
    instances: tuple[int, ...]
    """Indices within the test set."""
    endpoints: tuple[str, ...]
    """HOST:PORT of each instance, or the one of all."""

    def command(self, evaluator: Evaluator) -> str:
        """Returns the line for a shell.

        Raises:
            ValueError: the output directory's name cannot be told to the evaluator of 2025.
        """
        words = self._words_2026(evaluator) if evaluator.generation == "2026" else self._words_2025(evaluator)
        return shlex.join(words)

    def _words_2026(self, evaluator: Evaluator) -> list[str]:
        if len(self.endpoints) == 1:
            host, port = self.endpoints[0].split(":")
            policy = ["--host", host, "--port", port]
        else:
            policy = ["--policy-endpoints", *self.endpoints]
        words = [evaluator.python, "-m", "omnigibson.eval.eval", "--task-name", self.task, *policy]
        words += ["--mode", f"{evaluator.testset}_test", "--instance-indices", *map(str, self.instances)]
        words += ["--num-envs", str(len(self.instances))]
        words += ["--env-wrapper", evaluator.env_wrapper or OFFICIAL_WRAPPER_2026]
        if evaluator.robot_config is not None:
            words += ["--robot-config", str(evaluator.robot_config)]
        if evaluator.replay_action_chunk_size is not None:
            words += ["--replay-action-chunk-size", str(evaluator.replay_action_chunk_size)]
        words += ["--output-dir", str(evaluator.output_dir)]
        return [*words, *(["--write-video"] if evaluator.write_video else [])]

    def _words_2025(self, evaluator: Evaluator) -> list[str]:
        host, port = self.endpoints[0].split(":")
        script = evaluator.behavior_1k / "OmniGibson/omnigibson/learning/eval.py"
        words = [evaluator.python, str(script), "policy=websocket"]
        words += [f"task.name={self.task}", f"log_path={_hydra(str(evaluator.output_dir))}"]
        words += [f"model.host={host}", f"model.port={port}"]
        words += [f"eval_instance_ids=[{','.join(map(str, self.instances))}]"]
        if evaluator.env_wrapper is not None:
            words += [f"env_wrapper._target_={evaluator.env_wrapper}"]
        if evaluator.testset == "hidden":
            words += ["test_hidden=true"]
        return [*words, f"write_video={str(evaluator.write_video).lower()}"]


def plan(
    tasks: Mapping[str, int],
    instances: Sequence[int],
    endpoints: Sequence[str],
    *,
    generation: Generation,
    finished: frozenset[tuple[str, int]] = frozenset(),
    environments: int = 10,
) -> list[Run]:
    """Returns the calls of the evaluator that play what is not finished, task by task.

    Args:
        tasks: the number of each task to play, by name.
        instances: indices within the test set.
        endpoints: HOST:PORT of the policy servers; the same in the same order each time, or a (task, instance) moves.
        generation: of the evaluator.
        finished: task and instance index of what not to play again.
        environments: at most so many instances at the same time in one run (2026).

    Raises:
        ValueError: an instance is no index, an endpoint no HOST:PORT or there twice, or `environments` below 1.
    """
    _check(instances, endpoints, generation, environments)
    runs = []
    for task, number in tasks.items():
        of_endpoint: dict[str, list[int]] = collections.defaultdict(list)
        for instance in sorted(set(instances)):
            if (task, instance) not in finished:
                of_endpoint[endpoints[(number + instance) % len(endpoints)]].append(instance)
        if generation == "2025" or len(endpoints) == 1:
            size = environments if generation == "2026" else max(1, len(instances))
            for endpoint, mine in of_endpoint.items():
                groups = [mine[start : start + size] for start in range(0, len(mine), size)]
                runs += [Run(task, tuple(group), (endpoint,)) for group in groups]
        else:
            runs += _side_by_side(task, of_endpoint, environments)
    return runs


def _check(instances: Sequence[int], endpoints: Sequence[str], generation: Generation, environments: int) -> None:
    """Refuses arguments of `plan`."""
    if not instances or not set(instances) <= set(range(INSTANCES[generation])):
        raise ValueError(f"got instances {list(instances)}; give indices within 0 .. {INSTANCES[generation] - 1}")
    for endpoint in endpoints:
        match = _ENDPOINT.fullmatch(endpoint)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise ValueError(f"{endpoint!r} is no HOST:PORT, such as 10.0.0.5:8000")
    if not endpoints or len(set(endpoints)) < len(endpoints):
        raise ValueError(f"got endpoints {list(endpoints)}; give at least one, and each once")
    if environments < 1:
        raise ValueError(f"a run has at least one environment, got {environments}")


def _side_by_side(task: str, of_endpoint: Mapping[str, Sequence[int]], environments: int) -> list[Run]:
    """Returns runs in which every instance has an endpoint of its own."""
    rounds = max((len(mine) for mine in of_endpoint.values()), default=0)
    runs = []
    for turn in range(rounds):
        pairs = sorted((mine[turn], endpoint) for endpoint, mine in of_endpoint.items() if turn < len(mine))
        for start in range(0, len(pairs), environments):
            group = pairs[start : start + environments]
            runs.append(Run(task, tuple(pair[0] for pair in group), tuple(pair[1] for pair in group)))
    return runs


def choose(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Returns the number of each task, by name in the order of `known`; all of `known` when no name is given.

    Raises:
        ValueError: a name is not known; the message tells the nearest ones.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"tasks are {', '.join(known[:3])}, ..."
            raise ValueError(f"no task {name!r} among the {len(known)} of this generation; {hint}")
    return {name: number for number, name in enumerate(known) if not names or name in names}


def finished_instances(
    rollouts: Sequence[Rollout],
    *,
    generation: Generation,
    testset: Testset,
    test_instances: pathlib.Path | None = None,
    repeat_failed: bool = False,
) -> frozenset[tuple[str, int]]:
    """Returns task and instance index of each rollout that is there.

    Args:
        rollouts: as read from the output directory.
        generation: of the evaluator.
        testset: the indices count within.
        test_instances: 2025's `test_instances.csv`, which tells the public instances' indices.
        repeat_failed: leaves out rollouts that the evaluator gave up, so that they are played again.

    Raises:
        ValueError: the table is needed and was not given, or is not that of the rollouts.
    """
    done = [rollout for rollout in rollouts if not (repeat_failed and rollout.failure_reason is not None)]
    if generation == "2026":
        first = FIRST_INSTANCE[testset]
        return frozenset((one.task, one.instance_id - first) for one in done)
    if testset == "hidden":
        return frozenset((one.task, one.instance_id) for one in done)
    if not done:
        return frozenset()
    if test_instances is None:
        raise ValueError(
            f"{len(done)} rollouts are finished, and which indices they are is told by BEHAVIOR-1K's "
            f"2025-challenge-task-instances/metadata/test_instances.csv; give it as --test-instances"
        )
    ids = public_instances_2025(test_instances)
    if unknown := sorted({one.task for one in done} - ids.keys()):
        raise ValueError(f"{unknown[0]} is not in {test_instances}")
    return frozenset(
        (one.task, ids[one.task].index(one.instance_id)) for one in done if one.instance_id in ids[one.task]
    )


def public_instances_2025(path: pathlib.Path) -> dict[str, list[int]]:
    """Returns the ten public instances of every task of 2025, in the order of their indices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table of number, task and instances.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    try:
        return {row[1]: [int(instance) for instance in row[2].split(",")][:10] for row in rows}
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} is no test_instances.csv, whose rows are number, task and instances") from error


def _hydra(value: str) -> str:
    """Returns a value as Hydra's grammar of overrides has it: quoted unless plain."""
    if not value.isprintable() or set(value) & set("\\'\"$"):
        raise ValueError(f"{value!r} has a sign that Hydra reads as its own; choose another output directory")
    return value if _PLAIN_HYDRA_VALUE.fullmatch(value) else f"'{value}'"
