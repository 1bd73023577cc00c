"""Plays a policy in the sample world, as the simulator's evaluator would play it, and says how often it succeeds.

The ablations are the controls: with another goal's prompt, blanked images (and depth), random weights, or the mean
demonstration replayed open loop, success has to vanish: else the world could be solved without seeing, reading or
learning.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

from openpi_b1k.checkpoints import contents
from openpi_b1k.checkpoints.params import WeightsKind
from openpi_b1k.config.data import Generation
from openpi_b1k.evaluation.closed_loop.ablations import BLINDS
from openpi_b1k.evaluation.closed_loop.environments import SampleEpisode
from openpi_b1k.evaluation.closed_loop.files import Files
from openpi_b1k.evaluation.closed_loop.outcome import Result
from openpi_b1k.evaluation.closed_loop.play import Player, play
from openpi_b1k.evaluation.closed_loop.players import Endpoint, Remote, Replayed, Timings
from openpi_b1k.evaluation.closed_loop.served import sample_config, served
from openpi_b1k.evaluation.closed_loop.settings import Ablation, Settings
from openpi_b1k.rollouts import results
from openpi_b1k.sample.environment import mean_demonstration
from openpi_b1k.sample.world import MAX_STEPS
from openpi_b1k.serving.client import ConnectionLostError

MAX_AT_ONCE = 100
"""Environments of one model call where only time counts."""


def evaluate(
    checkpoint: pathlib.Path | str,
    *,
    episodes: int,
    seed: int = 0,
    ablate: Ablation = "none",
    execution_horizon: int | None = None,
    weights_kind: WeightsKind = "ema",
) -> Result:
    """Plays `episodes` unseen layouts as quickly as can be: many at once, and asking for whole chunks.

    Args:
        checkpoint: directory of a run on the sample world.
        episodes: layouts; the four goals take turns.
        seed: of layouts and sampling noise.
        ablate: what to take away from the policy.
        execution_horizon: actions executed per chunk; default: all that were predicted.
        weights_kind: as for `load_params`.

    Raises:
        ValueError: the checkpoint was not trained on the sample world, or a number is out of range.
    """
    checkpoint = pathlib.Path(checkpoint)
    horizon = execution_horizon or contents.read_config(checkpoint).model.action_horizon
    settings = Settings(
        episodes=episodes,
        seed=seed,
        ablate=ablate,
        execution_horizon=execution_horizon,
        weights_kind=weights_kind,
        num_envs=MAX_AT_ONCE,
        replay_action_chunk_size=horizon if horizon > 1 else None,
    )
    return play_checkpoint(checkpoint, settings)


def play_checkpoint(checkpoint: pathlib.Path, settings: Settings) -> Result:
    """Serves a checkpoint of a sample recipe in this process, and plays it.

    Raises:
        FileNotFoundError: it is no checkpoint, or not all of one.
        ValueError: it was not trained on the sample world, or a setting does not fit it.
        FileExistsError: the output directory has a result of one of these rollouts.
    """
    config = sample_config(checkpoint)
    horizon, wanted = config.model.action_horizon, settings.execution_horizon
    if wanted is not None and not 1 <= wanted <= horizon:
        raise ValueError(f"execution_horizon must be in [1, {horizon}]; got {wanted}")
    settings = dataclasses.replace(settings, generation=settings.generation or config.data.generation)
    if settings.ablate == "demonstration":
        player = Replayed(mean_demonstration(config.data.sample_demos, MAX_STEPS))
        return _play(str(checkpoint), settings, settings.group_size(1), player)
    with served(checkpoint, settings) as endpoint:
        return play_endpoints(str(checkpoint), [endpoint], settings)


def play_endpoints(name: str, endpoints: Sequence[Endpoint], settings: Settings) -> Result:
    """Plays who answers at one endpoint, or at one endpoint per environment.

    Args:
        name: of the policy, for the result.
        endpoints: one, or as many as environments are played at a time.
        settings: what is played.

    Raises:
        ValueError: an endpoint cannot be reached at the beginning. Later errors are failures of rollouts.
        FileExistsError: the output directory has a result of one of these rollouts.
    """
    timings = Timings()
    with Remote(endpoints, BLINDS[settings.ablate], timings) as player:
        try:
            player.connect()
        except ConnectionLostError as error:
            raise ValueError(str(error)) from error
        result = _play(name, settings, settings.group_size(len(endpoints)), player)
    return dataclasses.replace(result, timing=timings.percentiles())


def _play(name: str, settings: Settings, group_size: int, player: Player) -> Result:
    """Plays all episodes, group after group, and writes each rollout's files when its group is over."""
    generation: Generation = settings.generation or "2026"
    episodes = [SampleEpisode(generation, settings.seed, number) for number in range(settings.episodes)]
    if settings.output_dir is not None:
        _refuse_results(settings.output_dir, episodes)
    rollouts = []
    for start in range(0, len(episodes), group_size):
        group = episodes[start : start + group_size]
        with contextlib.ExitStack() as exits:
            files = [_files(episode, settings, generation, exits) for episode in group]
            failures = play(group, player, [one if one is not None and one.wants_steps else None for one in files])
            for episode, failure, file in zip(group, failures, files, strict=True):
                rollouts.append(episode.rollout(failure))
                if file is not None:
                    file.finish(rollouts[-1])
    pressed = tuple(episode.pressed for episode in episodes)
    return Result(name, settings.seed, settings.ablate, tuple(rollouts), pressed)


def _files(
    episode: SampleEpisode, settings: Settings, generation: Generation, exits: contextlib.ExitStack
) -> Files | None:
    if settings.output_dir is None:
        return None
    files = Files(settings.output_dir, episode, generation, video=settings.write_video, record=settings.record)
    exits.callback(files.discard)  # of no effect on what is finished
    return files


def _refuse_results(output_dir: pathlib.Path, episodes: Sequence[SampleEpisode]) -> None:
    paths = [output_dir / results.FOLDERS["2026"] / f"{episode.stem}.json" for episode in episodes]
    found = [path for path in paths if path.exists()]
    if found:
        raise FileExistsError(
            f"{output_dir} has {len(found)} of these rollouts already, the first is {found[0].name}; give another "
            "--output-dir, or remove them"
        )
