"""A checkpoint of a sample recipe as a server in this process, for the evaluator's client to ask."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.evaluation.closed_loop.players import Endpoint
from openpi_b1k.evaluation.closed_loop.settings import Settings
from openpi_b1k.models.pi0 import Model
from openpi_b1k.sample.world import GOALS
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.assembly import Setup, serving_in_thread
from openpi_b1k.serving.policies import Policies, read_profile
from openpi_b1k.serving.policy import Policy, dense


def sample_config(checkpoint: pathlib.Path) -> TrainConfig:
    """Returns the config of a checkpoint that can act in the sample world.

    Raises:
        FileNotFoundError: it is no checkpoint, or not all of one.
        ValueError: it was not trained on the sample world, or not on all of its tasks.
    """
    config = contents.read_config(checkpoint)
    if config.data.source != "sample":
        raise ValueError(
            f"{checkpoint} was trained on data source {config.data.source!r}; the sample world can only play "
            "checkpoints of the sample recipes"
        )
    prompts = contents.read_assets(checkpoint).prompts
    untrained = [goal.task_name for goal in GOALS if goal.task_name not in prompts]
    if untrained:
        raise ValueError(
            f"{checkpoint} was not trained on {', '.join(untrained)}; all tasks of the sample world are played"
        )
    return config


@contextlib.contextmanager
def served(checkpoint: pathlib.Path, settings: Settings) -> Iterator[Endpoint]:
    """Serves a checkpoint at a free port of this machine while entered; gives where and how it is asked."""

    def load(_: str) -> Policy:
        policy = jax_backend.load(checkpoint, settings.seed, settings.weights_kind)
        if settings.ablate == "weights":
            model = dense(policy.config.model)
            random = jax.jit(Model(model).init_params)(jax.random.key(settings.seed))
            policy.backend = jax_backend.JaxBackend(model, random, settings.seed)
        return policy

    profile = read_profile(str(checkpoint), checkpoint)
    setup = Setup(
        policies=Policies({profile.name: profile}, load),
        execution=ExecutionConfig(execution_horizon=settings.execution_horizon),
        batch_sizes=(settings.group_size(1),),
    )
    with serving_in_thread(setup) as port:
        yield Endpoint("127.0.0.1", port, settings.protocol, settings.replay_action_chunk_size)
