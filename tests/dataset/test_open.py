"""The one call training makes, and the script that shows the statistics."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.random_samples import random_norm_stats
from openpi_b1k.robots.r1pro import r1pro
from tests.dataset.dataset_cases import NAMES, make_config


def test_training_data_fit_together(generation, config):
    data = open_training_data(config)
    sample = data.pipeline(data.dataset[0])
    assert sample["state"].shape == (32,)
    assert sample["images"]["head"].shape == (56, 56, 3)
    assert list(data.prompts) == ["turning_on_radio", "picking_up_trash"]
    assert data.prompts["turning_on_radio"].startswith("Turn on the radio receiver")
    assert len(data.fingerprint) == 32
    assert len(data.dataset) == {"2025": 1266, "2026": 260}[generation]
    assert data.robot == r1pro("like_action")
    assert open_training_data(config).fingerprint == data.fingerprint


def test_frames_in_memory_change_nothing(config):
    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, frame_cache_gib=0.1))
    data, other = open_training_data(config), open_training_data(cached)
    for i in (3, 200):
        plain, kept = data.pipeline(data.dataset[i]), other.pipeline(other.dataset[i])
        for camera, image in plain["images"].items():
            np.testing.assert_array_equal(kept["images"][camera], image)


def test_random_data(generation):
    data = open_training_data(make_config(generation, None, source="random"))
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
    with pytest.raises(IndexError, match=r"sample 1024 is outside \[0, 1024\) of the random data"):
        data.dataset[1024]
    assert (random_norm_stats(robot).actions.std == 1).all()


def test_prompts_that_could_be_too_long_are_refused(config):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, max_prompt_tokens=40))
    with pytest.raises(ValueError, match=r"turning_on_radio .*picking_up_trash .*--model.max-prompt-tokens"):
        open_training_data(config)


def test_missing_data_show_how_to_get_them(tmp_path):
    config = make_config("2026", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"hf download behavior-1k/2026-challenge-demos .*--data.root"):
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
    assert len(lines) == 1 + 23 + 23 + 2
    assert next(line for line in lines if line.startswith("actions.torso[3]")).endswith("*")
    assert lines[-1].endswith(".json")


def test_script_tells_what_is_wrong(data_dir):
    done = run_script("pi05_b1k_2026", "--data.root", str(data_dir / NAMES["2025"]))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "use recipe pi05_b1k, or give --data.generation 2025" in done.stderr
    assert "Traceback" not in done.stderr
