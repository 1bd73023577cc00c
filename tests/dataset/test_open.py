"""The one call training makes, and the script that shows the statistics."""

import dataclasses
import logging
import subprocess
import sys

import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.random_samples import random_norm_stats
from openpi_b1k.robots.r1pro import r1pro
from tests.dataset.dataset_cases import NAMES, make_config

NAMED = ("turning_on_radio", "picking_up_trash")


def test_training_data_fit_together(generation, config):
    data = open_training_data(config)
    sample = data.pipeline(data.dataset[0])
    assert sample["state"].shape == (32,)
    assert sample["images"]["head"].shape == (56, 56, 3)
    assert list(data.prompts) == ["turning_on_radio", "picking_up_trash"]
    assert data.prompts["turning_on_radio"].startswith("Turn on the radio receiver")
    assert len(data.fingerprint) == 32
    assert len(data.dataset) == {"2025": 963, "2026": 178}[generation]  # without idle ends and held-out episodes
    assert data.robot == r1pro("like_action")
    assert open_training_data(config).fingerprint == data.fingerprint


def mixture_of(config, **changes):
    """Returns a config of two sources: the config's, and a third as often the first task alone."""
    more = dataclasses.replace(make_config(config.data.generation, None).data, root=config.data.root, **changes)
    fields = {field.name: getattr(more, field.name) for field in dataclasses.fields(SourceConfig)}
    second = SourceConfig(**fields | {"name": "radio", "weight": 0.5, "tasks": ("turning_on_radio",)})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, extra_sources=(second,)))


def test_a_mixture_draws_from_all_its_sources_and_pools_their_statistics(config, caplog):
    alone = open_training_data(config)
    with caplog.at_level(logging.INFO):
        data = open_training_data(mixture_of(config))
    assert [source.name for source in data.mixture.sources] == ["demonstrations", "radio"]
    np.testing.assert_allclose(data.mixture.shares, [2 / 3, 1 / 3], atol=1e-3)
    addresses = [data.mixture.address(n) for n in range(192)]
    assert sum(address.source for address in addresses) == pytest.approx(64, abs=3)
    (n,) = [n for n, address in enumerate(addresses) if address.source == 1][:1]
    raw = data.sources[1].dataset[addresses[n].index]
    np.testing.assert_array_equal(data.mixture.sample(n)["state"], data.mixture.sources[1].pipeline(raw)["state"])
    assert raw["task"] == 0
    assert len(data.fingerprint) == 32
    assert data.fingerprint not in (alone.fingerprint, data.sources[1].fingerprint)
    assert list(data.prompts) == list(alone.prompts)
    assert not np.array_equal(data.norm_stats.state.mean, alone.norm_stats.state.mean)
    assert "source radio: " in caplog.text
    assert "weight 0.5, share 33.3" in caplog.text

    own = mixture_of(config)
    own = open_training_data(dataclasses.replace(own, data=dataclasses.replace(own.data, norm_stats_of="own")))
    np.testing.assert_array_equal(own.norm_stats.state.mean, alone.norm_stats.state.mean)
    states = [source.pipeline(raw)["state"] for source in own.mixture.sources]
    assert not np.array_equal(*states)


def test_a_checkpoint_keeps_sentences_and_the_policy_is_told_the_level(data_dir):
    config = make_config("2025", data_dir / NAMES["2025"], prompt_level=1)
    data = open_training_data(config)
    assert data.prompts["turning_on_radio"].startswith("Turn on the radio receiver")
    assert data.dataset[0]["prompt"] in data.sources[0].wordings[NAMED[data.dataset[0]["task"]]]
    assert data.dataset[0]["prompt"] != data.prompts[NAMED[data.dataset[0]["task"]]]


def test_frames_in_memory_change_nothing(config):
    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, frame_cache_gib=0.1))
    data, other = open_training_data(config), open_training_data(cached)
    for i in (3, 150):
        plain, kept = data.pipeline(data.dataset[i]), other.pipeline(other.dataset[i])
        for camera, image in plain["images"].items():
            np.testing.assert_array_equal(kept["images"][camera], image)


def test_random_data(generation):
    config = make_config(generation, None, source="random")
    data = open_training_data(config)
    robot = data.robot
    one, again, other = data.dataset[5], data.dataset[5], data.dataset[6]
    assert one["proprio"].shape == ({"2025": 256, "2026": 61}[generation],)
    assert one["images"]["head"].shape == (56, 56, 3)
    np.testing.assert_array_equal(one["actions"], again["actions"])
    np.testing.assert_array_equal(one["images"]["head"], again["images"]["head"])
    assert not np.array_equal(one["actions"], other["actions"])
    samples = [data.pipeline(data.dataset[i]) for i in range(50)]
    assert any(not sample["action_mask"][:, 0].all() for sample in samples)
    assert np.abs([sample["state"][: robot.state.size] for sample in samples]).mean() < 1
    assert data.mixture.sample(70)["actions"].shape == (config.model.action_horizon, 32)
    with pytest.raises(ValueError, match="random numbers have statistics of their own; got --norm-stats /some/where"):
        open_training_data(dataclasses.replace(config, norm_stats="/some/where"))
    with pytest.raises(IndexError, match=r"sample 1024 is outside \[0, 1024\) of the random data"):
        data.dataset[1024]
    assert (random_norm_stats(robot).actions.std == 1).all()


def test_prompts_that_could_be_too_long_are_refused(config):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, max_prompt_tokens=40))
    with pytest.raises(ValueError, match=r"turning_on_radio .*picking_up_trash .*--model.max-prompt-tokens"):
        open_training_data(config)


def test_missing_data_show_how_to_get_them(tmp_path):
    config = make_config("2026", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"download_dataset.py --generation 2026 .*--data.root"):
        open_training_data(config)
    sample = make_config("2025", None, source="sample", sample_demos=3)
    with pytest.raises(ValueError, match=r"data.root must be set for source 'sample'"):
        open_training_data(sample)


def run_script(*args):
    command = [sys.executable, "scripts/compute_norm_stats.py", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_script_prints_a_table_and_the_file(data_dir):
    done = run_script("pi05_b1k", "--data.root", str(data_dir / NAMES["2025"]))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 23 + 23 + 3
    assert next(line for line in lines if line.startswith("actions.torso[3]")).endswith("*")
    assert lines[-1].endswith(".json")


def test_script_tells_what_is_wrong(data_dir):
    done = run_script("pi05_b1k_2026", "--data.root", str(data_dir / NAMES["2025"]))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "use recipe pi05_b1k, or give --data.generation 2025" in done.stderr
    assert "Traceback" not in done.stderr
