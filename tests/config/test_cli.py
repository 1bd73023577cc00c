import dataclasses
import subprocess
import sys

import pytest

import configs
from openpi_b1k.config import cli, serialize

RECIPES = cli.load_recipes(configs)
NO_JAX = """
import sys
import configs
import openpi_b1k.transforms.pipeline
from openpi_b1k.config import cli
assert cli.load_recipes(configs)
print([name for name in ("jax", "flax", "orbax", "torch", "wandb") if name in sys.modules])
"""


def parse(*args):
    return cli.parse(configs, args)


def refused(capsys, *args):
    """Returns what a refused command line is told, on one line and without the box around it."""
    with pytest.raises(SystemExit) as stop:
        parse(*args)
    assert stop.value.code == 2
    told = capsys.readouterr()
    return " ".join((told.err + told.out).replace("│", " ").split())


def shown(*args):
    done = subprocess.run([sys.executable, "scripts/train.py", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_are_the_files_of_configs():
    assert {"pi05_b1k", "pi05_b1k_2026", "debug"} <= set(RECIPES)
    for name, (config, summary) in RECIPES.items():
        assert config.name == name
        assert summary.endswith(".")


def test_help_lists_the_recipes_with_what_they_are():
    text = " ".join(shown("--help").replace("│", " ").split())
    for name, (_, summary) in RECIPES.items():
        assert name in text
        assert summary in text


def test_help_of_a_recipe_shows_its_own_values():
    text = " ".join(shown("pi05_b1k", "--help").replace("│", " ").split())
    assert "--batch-size INT Samples per step over all devices. (default: 256)" in text
    assert "--data.transforms.state-layout {grippers_last,like_action}" in text
    assert "--name" not in text.split()


def test_the_command_line_needs_no_jax():
    done = subprocess.run([sys.executable, "-c", NO_JAX], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_alone_is_a_complete_command(name):
    assert parse(name) == RECIPES[name][0]


def test_flags_change_fields_on_either_side_and_in_any_order():
    base = RECIPES["debug"][0]
    model = dataclasses.replace(base.model, action_horizon=16)
    data = dataclasses.replace(base.data, root="DIR", tasks=("turning_on_radio", "can_meat"))
    expected = dataclasses.replace(base, exp_name="radio", batch_size=64, model=model, data=data, ema_decay=0.99)
    flags = [
        ["--exp-name", "radio"],
        ["--data.root", "DIR"],
        ["--data.tasks", "turning_on_radio", "can_meat"],
        ["--batch-size", "64"],
        ["--model.action-horizon", "16"],
        ["--ema-decay", "0.99"],
    ]
    words = [word for flag in flags for word in flag]
    reversed_words = [word for flag in reversed(flags) for word in flag]
    assert parse("debug", *words) == expected
    assert parse("debug", *reversed_words) == expected
    assert parse(*words, "debug") == expected
    assert parse(*words[:5], *words[5:], "debug") == expected
    assert parse("--batch-size", "64", "debug", "--num-steps", "30").num_steps == 30


def test_every_field_but_the_recipes_own_is_a_flag():
    for name, value in serialize.flatten(RECIPES["debug"][0]).items():
        if name in ("name", "data.extra_sources") or isinstance(value, bool) or value is None:
            continue
        words = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        assert parse("debug", f"--{name.replace('_', '-')}", *words) == RECIPES["debug"][0], name
    assert parse("debug", "--resume").resume
    assert parse("debug", "--overwrite").overwrite
    assert not parse("debug", "--data.transforms.no-mask-padding").data.transforms.mask_padding
    assert parse("pi05_b1k", "--checkpoints.keep-every", "None").checkpoints.keep_every is None


def test_a_flags_value_may_be_a_recipes_name():
    assert parse("pi05_b1k", "--exp-name", "debug").exp_name == "debug"


def test_a_wrong_recipe_is_refused_with_the_nearest(capsys):
    told = refused(capsys, "pi05_b1k_2025", "--batch-size", "4")
    assert "no recipe 'pi05_b1k_2025' in configs/. Did you mean 'pi05_b1k_2026'?" in told
    assert "Recipes: debug, pi05_b1k," in told
    told = refused(capsys, "xyz")
    assert "Did you mean" not in told
    assert "pi05_b1k" in told


def test_no_recipe_is_refused_with_all(capsys):
    told = refused(capsys)
    assert all(name in told for name in RECIPES)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--batch-sise", "--batch-size"),
        ("--data.task", "--data.tasks"),
        ("--model.action-horizn", "--model.action-horizon"),
        ("--peak-lr", "--schedule.peak-lr"),
    ],
)
def test_a_wrong_flag_is_refused_with_the_nearest(capsys, wrong, right):
    told = refused(capsys, "debug", wrong, "4")
    assert f"Unrecognized options: {wrong}" in told
    assert f"Perhaps you meant: {right} " in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1; got 0"),
        (["--batch-size", "many"], "--batch-size"),
        (["--wandb", "onlin"], "'off', 'offline', 'online'"),
        (["--data.generation", "2027"], "'2025', '2026'"),
        (["--data.transforms.delta-fields", "left_leg"], "known fields: base, torso, left_arm, left_gripper"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--rollouts", "50"], "rollouts needs data.source 'sample'"),
    ],
)
def test_an_impossible_value_is_refused(capsys, words, message):
    assert message in refused(capsys, "debug", *words)
