import dataclasses
import json

import pytest

import configs
from openpi_b1k.config import cli, serialize
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.model import ModelConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.models.pi0 import Model
from openpi_b1k.training.report import count

RECIPES = {name: config for name, (config, _) in cli.load_recipes(configs).items()}
NUM_PARAMETERS = {"pi05": 3_353_433_872, "pi0": 3_238_048_528}  # openpi's; see the stored list of names and shapes


@pytest.fixture(params=RECIPES)
def recipe(request) -> TrainConfig:
    return RECIPES[request.param]


def nested(content, path):
    for key in path:
        content = content[key]
    return content


def test_every_recipe_survives_json(recipe):
    text = serialize.to_json(recipe)
    assert serialize.from_json(text) == recipe
    assert serialize.to_json(serialize.from_json(text)) == text


def test_every_recipe_builds_its_parameters_without_memory(recipe):
    params = Model(recipe.model).abstract_params()
    extra = {"point_cloud"} if recipe.model.point_clouds else set()
    assert set(params) == {"vision", "vlm", "action_expert", "suffix", *extra}
    kind = recipe.model.kind
    if recipe.model == ModelConfig(kind=kind, max_prompt_tokens=recipe.model.max_prompt_tokens):
        assert count(params) == NUM_PARAMETERS[kind]


def test_published_recipes_are_full_size():
    assert RECIPES["pi05_b1k"].model == RECIPES["pi05_b1k_2026"].model == ModelConfig()
    assert RECIPES["pi0_b1k"].model == ModelConfig(kind="pi0", max_prompt_tokens=128)


def test_values_that_json_knows_differently_come_back_as_they_were():
    base = RECIPES["debug"]
    data = dataclasses.replace(base.data, root="/data", tasks=("radio", "meat"))
    config = dataclasses.replace(base, ema_decay=0.9999, data=data, exp_name=None)
    back = serialize.from_json(serialize.to_json(config))
    assert back == config
    assert back.data.tasks == ("radio", "meat")  # a list in JSON
    assert back.optimizer.weight_decay == 1e-10
    assert hash(back.model) == hash(config.model)


def test_a_mixture_survives_json_and_its_parts_are_numbered_when_flat():
    base = RECIPES["pi05_b1k"]
    more = SourceConfig(name="rft", tasks=("radio",), weight=0.4, skill_weights=(("press", 0.5), ("all", 1.0)))
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, extra_sources=(more,), weight=0.6))
    back = serialize.from_json(serialize.to_json(config))
    assert back == config
    assert back.data.sources[1] == more
    flat = serialize.flatten(config)
    assert flat["data.extra_sources.0.weight"] == 0.4
    assert flat["data.extra_sources.0.transforms.normalization"] == "quantile"


@pytest.mark.parametrize(
    "path", [(), ("model",), ("model", "vlm"), ("data", "transforms"), ("optimizer",), ("checkpoints",)], ids=".".join
)
def test_unknown_keys_are_refused_at_every_level(path):
    content = json.loads(serialize.to_json(RECIPES["debug"]))
    nested(content, path)["learning_rat"] = 1.0
    with pytest.raises(ValueError, match=r"learning_rat\n.*Unexpected keyword argument"):
        serialize.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ((), "batch_size", "many", "batch_size\n.*valid integer"),
        ((), "batch_size", 0, "batch_size must be at least 1; got 0"),
        ((), "wandb", "sometimes", "'off', 'offline' or 'online'"),
        (("data",), "cameras", ["tail"], "no camera 'tail'; known cameras: head, left_wrist, right_wrist"),
        (("model", "vlm"), "width", 1.5, "width\n.*valid integer"),
        (("model", "vlm"), "depth", 7, "vlm and action_expert share one attention, so depth must be equal"),
    ],
)
def test_bad_values_are_refused(path, key, value, message):
    content = json.loads(serialize.to_json(RECIPES["debug"]))
    nested(content, path)[key] = value
    with pytest.raises(ValueError, match=message):
        serialize.from_json(json.dumps(content))


def test_a_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match=r"no config at .*config\.json; a checkpoint of openpi_b1k has"):
        serialize.read(path)
    path.write_text(serialize.to_json(RECIPES["pi05_b1k"]))
    assert serialize.read(path) == RECIPES["pi05_b1k"]
    path.write_text('{"chunk_size": 50}')
    with pytest.raises(ValueError, match=r"config\.json is not a config of this version: (.|\n)*chunk_size"):
        serialize.read(path)


def test_flatten_names_every_leaf_with_dots():
    flat = serialize.flatten(RECIPES["pi05_b1k_2026"])
    assert flat["data.transforms.delta_fields"] == ("torso", "left_arm", "right_arm")
    assert flat["model.vlm.width"] == 2048
    assert flat["batch_size"] == 256
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())
