"""docs/training.md against the code: its flags exist, and it explains every number that is logged."""

import pathlib
import re

import pytest

import configs
from openpi_b1k.config import cli, serialize
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.r1pro import ACTION
from tests.training import test_window

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "training.md").read_text()
FLAGS = {name.replace("_", "-") for name in serialize.flatten(TrainConfig())}
OF_THE_PLAN = {"device", "num-devices"}


def test_its_flags_exist():
    named = set(re.findall(r"--([a-z][a-z0-9.-]+)", PAGE)) - {"help"} - OF_THE_PLAN
    assert len(named) > 30
    assert named <= FLAGS


def test_its_recipes_and_pages_exist():
    recipes = set(re.findall(r"`(pi05_b1k\w*)`", PAGE)) | set(re.findall(r"train\.py (\w+) ", PAGE)) - {"RECIPE"}
    assert {"pi05_b1k", "pi05_b1k_expert", "pi05_b1k_lora"} <= recipes
    for name in recipes:
        assert (REPOSITORY / "configs" / f"{name}.py").is_file()
    for address in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (REPOSITORY / "docs" / address).exists()


def test_the_command_for_users_of_rlinf_is_what_their_recipe_says():
    (command,) = re.findall(r"As one command:\n\n```\nuv run scripts/train.py (.*?)\n```", PAGE, flags=re.DOTALL)
    config = cli.parse(configs, command.replace("\\\n", " ").split())
    assert (config.data.root, config.data.tasks, config.data.prompt_level) == ("DIR", ("turning_on_radio",), 0)
    assert config.frozen == ("vision", "language")
    assert (config.schedule.peak_lr, config.num_steps, config.checkpoints.save_every) == (2.5e-6, 20_000, 2000)
    assert (config.batch_size, config.model.action_horizon, config.weights) == (256, 32, "DIR/params")


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Returns the keys of a line that has everything."""
    monkeypatch.setattr("openpi_b1k.training.memory.device_memory_gb", lambda: 1.0)
    compute = test_window.Compute(1.0, 1.0)
    window = test_window.Window(test_window.MIXTURE, ACTION, tmp_path, compute)
    for step in (1, 2):
        window.add(step, test_window.measured(1.0, sources=((1.0, 1), (1.0, 1)), vision=1.0), 0.0)
    for name in ("checkpoint_stall_s", "validation_s"):
        with window.pause(name):
            pass
    return set(window.close())


def test_it_explains_every_number(logged):
    keys = set(re.findall(r"`([^` ]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE))))
    patterns = {re.sub(r"<\w+>", r"\\w+", key) for key in keys}
    unexplained = {key for key in logged if not any(re.fullmatch(pattern, key) for pattern in patterns)}
    assert unexplained == set()
