"""What was imported is trained on beside demonstrations, in the shares that were asked for."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import tyro

import configs
from configs import pi05_b1k_sample, pi05_b1k_sample_rft
from openpi_b1k.config import cli
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.curation.rollouts import importing
from openpi_b1k.curation.rollouts.gather import Settings
from openpi_b1k.data.open import open_training_data
from openpi_b1k.evaluation.commands import COMMANDS
from openpi_b1k.sample.world import GOALS
from scripts import import_rollouts
from tests import sample_cases
from tests.curation.rollout_cases import play, record


def config(tmp_path, demonstrations, rollouts):
    """Returns a run of three steps of a tiny model on 0.6 demonstrations and 0.4 rollouts."""
    tiny = sample_cases.tiny_config(tmp_path / "checkpoints", demonstrations, "2025")
    source = SourceConfig(
        name="rollouts", root=str(rollouts), weight=0.4, validation_episodes=(), transforms=tiny.data.transforms
    )
    data = dataclasses.replace(tiny.data, weight=0.6, extra_sources=(source,))
    return dataclasses.replace(tiny, data=data, num_steps=3, log_every=1)


@pytest.fixture
def mixed(sample_root, tmp_path):
    """Returns the config of a run on demonstrations and three imported rollouts."""
    for episode in range(3):
        record(tmp_path / "evaluation", episode)
    importing.import_rollouts(
        (tmp_path / "evaluation",), tmp_path / "rollouts", Settings(), tasks_of=sample_root("2025")
    )
    return config(tmp_path, sample_root("2025"), tmp_path / "rollouts")


def test_samples_are_drawn_from_both_and_go_through_the_pipeline(mixed):
    data = open_training_data(mixed)
    sources = np.array([data.mixture.address(n).source for n in range(1000)])
    assert abs((sources == 1).mean() - 0.4) < 0.01
    sample = data.mixture.sources[1].dataset.get(0)
    environment, _, actions = play(0)
    np.testing.assert_array_equal(sample["actions"][:5], actions[:5])
    assert sample["prompt"] == environment.goal.prompt == data.prompts[environment.goal.task_name]
    demonstration, rollout = (data.mixture.sample(sources.tolist().index(source)) for source in (0, 1))
    shapes = [jax.tree.map(np.shape, made) for made in (demonstration, rollout)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(rollout["actions"]).all()


@pytest.mark.slow
def test_a_run_trains_on_both(mixed):
    checkpoint = sample_cases.train(mixed)
    lines = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert len(json.loads((checkpoint / "assets/prompts.json").read_text())) == len(GOALS)


def test_the_recipe_is_the_sample_worlds_with_rollouts_beside_it():
    recipe = pi05_b1k_sample_rft.CONFIG
    demonstrations, rollouts = recipe.data.sources
    assert (demonstrations.weight, rollouts.weight) == (0.4, 0.6)
    assert rollouts.transforms == demonstrations.transforms
    assert rollouts.validation_episodes == ()
    before = pi05_b1k_sample.CONFIG  # from the same beginning, with statistics of all it is trained on
    assert (recipe.weights, recipe.norm_stats, recipe.schedule) == ("none", "data", before.schedule)


def test_the_commands_of_the_page_are_understood():
    page = (pathlib.Path(__file__).parents[2] / "docs/rollouts.md").read_text()
    (block,) = re.findall(r"```sh\n(# 1\..*?)```", page, flags=re.DOTALL)
    lines = block.replace("\\\n", " ").replace("$POLICY", "checkpoints/early/1600").splitlines()
    commands = [line.split()[2:] for line in lines if line.startswith("uv run ")]
    assert [script for script, *_ in commands].count("scripts/train.py") == 2
    for script, *args in commands:
        match script:
            case "scripts/train.py":
                cli.parse(configs, args)
            case "scripts/evaluate.py":
                tyro.extras.subcommand_cli_from_dict(COMMANDS, args=args)
            case "scripts/import_rollouts.py":
                tyro.cli(import_rollouts.Args, args=args)
            case _:
                pytest.fail(f"the page names {script}")
