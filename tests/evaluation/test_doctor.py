"""Faults planted around a network that has learned are named, and nothing is found where nothing is wrong."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.evaluation.doctor.diagnosis import LEAST_GAIN
from openpi_b1k.evaluation.doctor.examine import examine
from openpi_b1k.evaluation.doctor.findings import CAUSES
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.robots.r1pro import PROPRIO
from openpi_b1k.serving import requests
from scripts import doctor as script
from tests import sample_cases
from tests.evaluation import doctor_cases as cases

SEED = 20261123
"""Of what is planted: which prompts, how many frames, which numbers."""


def swapped_wrists(recording, rng):
    del rng
    frames = recording.frames
    swapped = {"left_wrist": frames["right_wrist"], "right_wrist": frames["left_wrist"]}
    return dataclasses.replace(recording, frames=frames | swapped)


def blue_for_red(recording, rng):
    del rng
    frames = {name: np.ascontiguousarray(images[..., ::-1]) for name, images in recording.frames.items()}
    return dataclasses.replace(recording, frames=frames)


def late_images(recording, rng):
    """The images stay behind by as many frames in every recording."""
    late = np.maximum(np.arange(recording.length) - rng, 0)
    return dataclasses.replace(recording, frames={name: images[late] for name, images in recording.frames.items()})


def glitches(recording, rng):
    """In one row of an episode a sensor and the command say something impossible."""
    del rng
    proprio = recording.proprio.copy()
    layout = next(layout for layout in PROPRIO.values() if layout.size == proprio.shape[1])
    proprio[recording.length // 4, layout.slice("arm_left_qpos")] = 60.0
    return dataclasses.replace(recording, proprio=proprio) if recording.instance == 1 else recording


DATA = {"plain": lambda recording, _: recording, "wrists": swapped_wrists, "colours": blue_for_red,
        "late": late_images, "glitches": glitches}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns a function to the directory of the doctor's data, with a change or without."""
    made = {}

    def directory(generation, change="plain", amount=0):
        key = f"{generation}-{change}-{amount}"
        if key not in made:
            root = tmp_path_factory.mktemp("doctor") / key
            made[key] = cases.write_data(root, generation, lambda recording: DATA[change](recording, amount))
        return made[key]

    return directory


@pytest.fixture(scope="module")
def healthy(data):
    """Returns a function to healthy checkpoints, each learned once."""
    made = {}

    def case(generation="2025", recipe="arms", seed=0):
        key = generation, recipe, seed
        if key not in made:
            made[key] = cases.healthy(data(generation), *key)
        return made[key]

    return case


def examined(case, directory, root=None):
    choice = DataChoice(case.root if root is None else root, split="training")
    return examine(case.write(directory / "1"), choice, cases.FRAMES, case.load)


def causes(report):
    return [finding.cause for finding in report.findings]


def rotated(prompts, places):
    sentences = list(prompts.values())
    return dict(zip(prompts, sentences[places:] + sentences[:places], strict=True))


def with_prompts(case, rng):
    prompts = rotated(case.assets.prompts, int(rng.integers(1, 4)))
    return dataclasses.replace(case, assets=dataclasses.replace(case.assets, prompts=prompts))


def with_horizon(case, rng):
    model = dataclasses.replace(case.config.model, action_horizon=int(rng.choice([12, 16])))
    return dataclasses.replace(case, config=dataclasses.replace(case.config, model=model))


def with_older_statistics(case, rng):
    """The statistics of the time before actions became deltas."""
    del rng
    older = dataclasses.replace(case.config.data.transforms, delta_fields=())
    return case.with_statistics(cases.data_statistics(case.config, older))


CHANGED_CHECKPOINTS = {
    "gripper order": lambda case, _: case.changed(state_layout="grippers_last"),
    "wrong stats": lambda case, rng: case.with_statistics(cases.foreign(case.assets.norm_stats, rng)),
    "stale normalisation": with_older_statistics,
    "wrong prompt table": with_prompts,
    "un-delta'd actions": lambda case, _: case.changed(delta_fields=()),
    "wrong horizon": with_horizon,
    "missing clip": lambda case, _: case.changed(clip_normalized=None),
}
CHANGED_DATA = {"swapped wrists": "wrists", "BGR": "colours", "shifted frames": "late", "missing clip": "glitches"}


def planted(fault, healthy, data, generation, rng):
    """Returns (case, root of its data) with a fault planted, what is random about it drawn from `rng`."""
    case, root = healthy(generation), data(generation)
    if fault in CHANGED_DATA:
        root = data(generation, CHANGED_DATA[fault], int(rng.choice([4, 6])))
    if fault in CHANGED_CHECKPOINTS:
        case = CHANGED_CHECKPOINTS[fault](case, rng)
    return case, root


NAMED = {
    "un-delta'd actions": "deltas",
    "wrong prompt table": "prompts",
    "wrong horizon": "horizon",
    "swapped wrists": "cameras",
    "BGR": "colours",
    "shifted frames": "frames",
    "gripper order": "state_layout",
    "wrong stats": "statistics",
    "stale normalisation": "stale_statistics",
    "missing clip": "clip",
}
QUICK = ("wrong horizon",)


@pytest.mark.parametrize("generation", [pytest.param("2025"), pytest.param("2026", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMED]
)
def test_a_planted_fault_is_named_first(fault, generation, healthy, data, tmp_path):
    rng = np.random.default_rng([SEED, list(NAMED).index(fault), int(generation)])
    case, root = planted(fault, healthy, data, generation, rng)
    report = examined(case, tmp_path, root)
    assert causes(report)[:1] == [NAMED[fault]], report.text()


HEALTHY = [("2025", recipe, seed) for seed, recipe in enumerate(cases.RECIPES)]
HEALTHY += [("2026", recipe, 7 + seed) for seed, recipe in enumerate(("absolute", "deltas", "z-score"))]


@pytest.mark.parametrize(
    ("generation", "recipe", "seed"),
    [pytest.param(*one, marks=() if one[1] == "grippers last" else pytest.mark.slow) for one in HEALTHY],
)
def test_nothing_is_found_where_nothing_is_wrong(generation, recipe, seed, healthy, tmp_path):
    report = examined(healthy(generation, recipe, seed), tmp_path)
    assert not report.findings, report.text()
    assert report.error < 0.5 * report.mean_action_error
    assert max(gain for _, _, gain in report.tried) < LEAST_GAIN / 2


def test_ten_faults_and_ten_healthy_checkpoints():
    assert len(NAMED) == len(HEALTHY) == 10
    assert set(NAMED.values()) <= set(CAUSES)


def test_a_policy_that_learned_nothing_is_said_to_have_and_the_report_is_written(
    sample_checkpoint, sample_root, tmp_path, capsys
):
    args = script.Args(
        sample_checkpoint,
        DataChoice(sample_root("2025"), split="training"),
        frames=4,
        batch_size=4,
        json=tmp_path / "report.json",
    )
    with sample_cases.quick_compilation():
        assert script.run(args) == 1
    printed = capsys.readouterr().out
    assert "hardly better than always giving the mean action (unlearned)" in printed
    assert "what to do: look at the training's loss" in printed
    written = json.loads(args.json.read_text())
    assert (written["num_frames"], written["num_episodes"]) == (4, 4)
    assert "unlearned" in [finding["cause"] for finding in written["findings"]]
    assert written["error"] > 0.9 * written["mean_action_error"]


def test_what_cannot_be_examined_is_refused(tmp_path, sample_checkpoint, capsys):
    assert script.run(script.Args(tmp_path)) == 2
    assert "no config at" in capsys.readouterr().err
    assert script.run(script.Args(sample_checkpoint, batch_size=0)) == 2
    assert "batch_size must be at least 1; got 0" in capsys.readouterr().err


def test_help_loads_no_jax():
    code = "import sys; from scripts import doctor; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_serving_that_sees_less_than_training_is_found(healthy, tmp_path, monkeypatch):
    whole = requests.raw_sample

    def cropped(*args):
        sample = whole(*args)
        return sample | {"images": sample["images"] | {"head": sample["images"]["head"][:-8, 8:]}}

    monkeypatch.setattr(requests, "raw_sample", cropped)
    report = examined(healthy(), tmp_path)
    assert causes(report) == ["image_path"]
    assert "image head differs by up to" in report.findings[0].evidence[0]


def test_files_that_were_changed_are_found_where_the_error_stays_the_same(healthy, tmp_path):
    checkpoint = healthy().write(tmp_path / "1")
    stats = next(checkpoint.glob(contents.NORM_STATS_PATTERN))
    stats.write_text(stats.read_text() + "\n")
    choice = DataChoice(healthy().root, split="training")
    report = examine(checkpoint, choice, cases.FRAMES, healthy().load)
    assert causes(report) == ["statistics"]
    assert "when the checkpoint was written it was" in report.findings[0].evidence[0]


def test_statistics_of_chunks_of_another_length_are_found_without_the_network(healthy, tmp_path):
    case = healthy(recipe="by step")
    model = dataclasses.replace(case.config.model, action_horizon=2 * cases.HORIZON)
    case = dataclasses.replace(case, config=dataclasses.replace(case.config, model=model))
    choice = DataChoice(case.root, split="training")
    report = examine(case.write(tmp_path / "1"), choice, cases.FRAMES, load=None)
    assert causes(report) == ["horizon"]
    assert report.findings[0].evidence == ("norm stats are of 8 steps of a chunk; model.action_horizon is 16",)
    assert json.loads(report.to_json())["error"] is None
