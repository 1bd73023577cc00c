"""Adapters apart from the weights: what `lora/` holds, and that with the base it makes `params/`."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from openpi_b1k.checkpoints import adapter_info, adapters
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.checkpoints.rules import flatten
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.config.model import AdapterConfig, LoraConfig
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.models import lora
from openpi_b1k.models.pi0 import Model
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend
from openpi_b1k.serving.requests import raw_sample
from openpi_b1k.sharding import make_mesh, replicated
from openpi_b1k.training.trainable import adapted_kernels, combine, role_of
from tests import sample_cases

LORA = LoraConfig(language=AdapterConfig(rank=2, alpha=4.0), action_expert=AdapterConfig(rank=3, alpha=3.0))
KERNELS = ("attn/q", "attn/kv", "attn/out", "mlp/gate_up", "mlp/down")


@pytest.fixture(scope="module")
def run(sample_checkpoint, sample_root, tmp_path_factory):
    """Returns the checkpoint of a run that trained adapters on the weights of another, and its config."""
    config = sample_cases.tiny_config(tmp_path_factory.mktemp("lora"), sample_root("2025"), "2025")
    config = dataclasses.replace(
        config,
        weights=str(sample_checkpoint),
        model=dataclasses.replace(config.model, lora=LORA),
        freeze=("vision", "language", "action_expert"),
        schedule=ScheduleConfig(warmup=0.0, peak_lr=1e-2, final_lr=1e-2),
        num_steps=2,
    )
    return sample_cases.train(config), config


@pytest.fixture
def alone(run, tmp_path):
    """Returns a directory with a copy of the adapters and nothing else."""
    shutil.copytree(run[0] / "lora", tmp_path / "lora")
    shutil.copy(run[0] / "adapter.json", tmp_path)
    return tmp_path


def read(checkpoint, config):
    dense = Model(dataclasses.replace(config.model, lora=LoraConfig())).abstract_params()
    place = replicated(make_mesh(1, jax.devices()[:1]))
    return load_params(checkpoint, dense, jax.tree.map(lambda _: place, dense))


def test_adapters_alone_on_their_base_are_the_weights_to_act_with(run, alone):
    checkpoint, config = run
    info = adapter_info.read_info(alone)
    assert (info.lora, info.base, info.base_kind) == (LORA, config.weights, "ema")
    found, config_read = adapters.load_adapters(alone)
    assert config_read == LORA
    assert {role_of(path) for path in flatten(found)} == {"lora"}
    acting, before = flatten(read(checkpoint, config)), read(info.base, config)
    model = dataclasses.replace(config.model, lora=config_read)
    merged, before = flatten(lora.merge(combine(before, found), model)), flatten(before)
    changed = set()
    for path, leaf in acting.items():
        if role_of(path) != "projections":
            np.testing.assert_allclose(leaf, merged[path], rtol=1e-6, atol=1e-6, err_msg=path)
        if not np.array_equal(leaf, before[path]):
            changed.add(path)
    moved = {path.replace("lora_b", "kernel") for path, b in flatten(found).items() if path.endswith("b") and np.any(b)}
    # The one VLM layer is its last, of which only keys and values are used.
    assert moved == {"vlm/layers/attn/kv/kernel", *(f"action_expert/layers/{name}/kernel" for name in KERNELS)}
    assert {path for path in changed if role_of(path) != "projections"} == moved
    assert moved < changed


def test_a_policy_acts_with_the_merged_weights_as_the_model_did_that_was_trained(run):
    checkpoint, config = run
    sample = raw_sample(
        SampleEnvironment("2025", 0, 0).observation(), r1pro("like_action"), SourceConfig(), "Press the red button."
    )
    found, _ = adapters.load_adapters(checkpoint)
    base, acting = read(config.weights, config), read(checkpoint, config)
    adapted = combine(acting, adapted_kernels(combine(base, found)), found)
    chunks = []
    for params, model in ((None, None), (adapted, config.model)):
        policy = jax_backend.load(checkpoint, seed=3)
        assert policy.config.model.lora == LORA
        if params is not None:
            policy.backend = jax_backend.JaxBackend(model, params, seed=3)  # the model with its adapters
        chunks.append(policy.infer([sample]))
    merged, unmerged = chunks
    assert not np.array_equal(jax_backend.load(config.weights, seed=3).infer([sample]), merged)
    np.testing.assert_allclose(merged, unmerged, rtol=1e-5, atol=1e-5)


def test_they_can_be_put_on_a_mesh(alone):
    place = replicated(make_mesh(2))
    found, _ = adapters.load_adapters(str(alone), place)
    on_first = adapters.load_adapters(alone)[0]
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, on_first)


def test_runs_without_adapters_write_none_and_say_so(sample_checkpoint, sample_root, tmp_path):
    assert adapter_info.files(sample_cases.tiny_config(tmp_path, sample_root("2025"), "2025")) == {}
    assert not (sample_checkpoint / "lora").exists()
    message = rf"no adapter\.json in {re.escape(str(sample_checkpoint))}; checkpoints of runs with model\.lora have one"
    with pytest.raises(FileNotFoundError, match=message):
        adapters.load_adapters(sample_checkpoint)


def test_a_description_of_other_adapters_is_refused(alone):
    path = alone / "adapter.json"
    text = path.read_text()
    stored = json.loads(text)
    stored["lora"]["language"]["rank"] = 5
    path.write_text(json.dumps(stored))
    message = (
        "adapter.json do not belong together: the adapters have the ranks {'action_expert': 3, 'language': 2}, and it "
        "says {'language': 5, 'action_expert': 3}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        adapters.load_adapters(alone)
    path.write_text(text.replace('"base"', '"basis"'))
    with pytest.raises(ValueError, match=r"adapter\.json is not of this version: (?s:.*)basis"):
        adapters.load_adapters(alone)


def test_adapters_that_are_missing_or_something_else_are_refused(alone, run):
    shutil.rmtree(alone / "lora")
    with pytest.raises(FileNotFoundError, match=r"lora holds no tree of arrays written by Orbax"):
        adapters.load_adapters(alone)
    shutil.copytree(run[0] / "train_state", alone / "lora")
    with pytest.raises(ValueError, match=r"lora holds '.*', which is no adapter's: names end with lora_a or lora_b"):
        adapters.load_adapters(alone)
