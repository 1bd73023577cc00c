"""The training benchmark: what each row measures, on a model small enough for a test."""

import dataclasses

import jax
import pytest

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.benchmarks import commands, training
from openpi_b1k.benchmarks.training_settings import MODELS, REDUCED, TrainingSettings


@pytest.fixture
def tiny(monkeypatch):
    model = dataclasses.replace(debug.CONFIG.model, image_size=14, max_prompt_tokens=8)
    monkeypatch.setitem(MODELS, "reduced", model)
    monkeypatch.setattr(training, "MATMUL_SIZE", 64)


def test_every_row_says_what_it_measured_and_against_what(tiny):
    rows = training.measure(TrainingSettings("reduced", ("forward", "expert_only"), batch_size=4, turns=2))
    assert [row.name for row in rows] == ["forward", "expert_only"]
    forward = rows[0]
    assert forward.to_forward is None
    for row in rows:
        assert row.samples_per_s == pytest.approx(4 / row.median_s)
        assert row.mfu is None  # neither full size nor a known device
        assert row.spread >= 1
        assert row.memory_gb > 0
        assert row.of_matmul > 0
        assert row.device == f"{jax.device_count()} x cpu"
    for row in rows[1:]:
        assert row.to_forward == pytest.approx(row.median_s / forward.median_s)
    assert rows[1].memory_gb > forward.memory_gb  # gradients and moments


def test_rows_train_what_their_recipes_train():
    settings = TrainingSettings("reduced")
    assert training.recipe(settings, "full").frozen == ()
    assert training.recipe(settings, "expert_only").frozen == ("vision", "language")
    assert training.recipe(settings, "flow_samples_8").flow_samples == 8
    lora = training.recipe(settings, "lora")
    assert lora.model.lora.roles == ("language", "action_expert")
    assert lora.frozen == ("vision", "language", "action_expert")


def test_a_batch_is_all_valid_but_for_the_prompts_padding():
    config = training.recipe(TrainingSettings("full", batch_size=4), "full")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=14))
    batch = training.random_batch(config, sharding.make_mesh(1))
    assert {name: image.shape for name, image in batch.observation.images.items()} == dict.fromkeys(
        ("head", "left_wrist", "right_wrist"), (4, 14, 14, 3)
    )
    assert batch.observation.prompt_mask.sum(axis=1).tolist() == [200] * 4
    assert bool(batch.action_mask.all())
    assert not bool((batch.observation.images["head"] == batch.observation.images["left_wrist"]).all())


def test_a_program_that_returns_a_state_gets_it_in_the_next_turn(tiny):
    seen = []

    def program(state, batch):
        seen.append(int(state.step))
        return dataclasses.replace(state, step=state.step + 1), batch

    config = training.recipe(TrainingSettings("reduced", batch_size=4), "full")
    mesh = sharding.make_mesh(1)
    optimizer = training.make_optimizer(config)
    model = training.Model(config.model, mesh)
    state = training.random_state(model, optimizer, config, training.abstract_state(model, optimizer, config, mesh))
    assert len(training.timed(program, 3, state, 0)) == 3
    assert seen == [0, 1, 2, 3]


def test_full_size_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match=r"--size full needs a GPU.*here: --size reduced"):
        training.measure(TrainingSettings())


def test_the_reduced_model_has_all_tokens_of_the_full_one():
    assert REDUCED.image_size == 224
    assert REDUCED.vision.patch_size == MODELS["full"].vision.patch_size
    assert REDUCED.action_horizon == MODELS["full"].action_horizon


def test_settings_are_checked():
    for wrong in ({"turns": 0}, {"batch_size": 0}, {"names": ()}):
        with pytest.raises(ValueError, match="must be at least 1, and names not empty"):
            TrainingSettings(**wrong)


def test_rows_are_compared_with_those_of_before(tmp_path):
    path = tmp_path / "rows.json"
    commands.write(path, [{"name": "forward", "median_s": 2.0}])
    assert commands.medians(path) == {"forward": 2.0}
    path.write_text('[{"frames": 3}]')
    with pytest.raises(ValueError, match=r"rows\.json does not hold rows of benchmark\.py train --json"):
        commands.medians(path)


def test_a_table_is_markdown():
    text = commands.table(
        [{"name": "forward", "mfu": None, "median_s": 0.12345}, {"name": "full", "mfu": 0.4, "median_s": 2000.5}]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines == [
        ["name", "forward", "full"],
        ["---", "---:", "---:"],
        ["mfu", "None", "0.4"],
        ["median_s", "0.123", "2000.5"],
    ]
