"""The layout of LeRobot's pi05."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch")

from openpi_b1k.checkpoints import safetensors
from openpi_b1k.config.data import DataConfig
from openpi_b1k.conversion import from_pytorch, gate, layouts, record, to_pytorch
from openpi_b1k.conversion.source import describe
from tests.conversion.conversion_cases import STORED, recipe, tensors_of


@pytest.fixture
def known(monkeypatch):
    """Pretends that the stored sizes are published ones, the only ones LeRobot knows, and their tokenizer is here."""
    monkeypatch.setattr(record, "VARIANTS", {STORED.vlm: "gemma_2b", STORED.action_expert: "gemma_300m"})
    monkeypatch.setattr("openpi_b1k.conversion.lerobot.PALIGEMMA_TOKENIZER", recipe().data.transforms.tokenizer)


@pytest.fixture
def source(data_dir):
    return describe(data_dir / "openpi_checkpoint" / "7", recipe(), None)


@pytest.mark.usefixtures("known")
def test_tensors_have_its_names_and_the_embeddings_two(data_dir, tmp_path):
    output = tmp_path / "out"
    rows = to_pytorch.convert(str(data_dir / "openpi_checkpoint" / "7"), output, recipe=recipe(), layout="lerobot")
    assert max(row.relative for row in rows) < gate.LIMIT
    ours, theirs = tensors_of(output / "model.safetensors"), tensors_of(data_dir / "openpi_pytorch")
    table = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    assert ours.keys() == {f"model.{key}" for key in theirs} | {table}
    np.testing.assert_array_equal(ours[table], ours["model.paligemma_with_expert.paligemma.lm_head.weight"])
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "conversion.json",
        "model.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_2_normalizer_processor.safetensors",
    ]
    stats = next((data_dir / "openpi_checkpoint").rglob("norm_stats.json"))
    from_pytorch.convert(str(output), tmp_path / "back", recipe=recipe(), norm_stats=stats)


@pytest.mark.usefixtures("known")
def test_config_and_processors(source, tmp_path):
    layout = layouts.LAYOUTS["lerobot"]
    layout.require_possible(source)
    layout.write(source, "float32", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["type"], config["chunk_size"], config["n_action_steps"]) == ("pi05", 32, 32)
    assert config["normalization_mapping"] == {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    assert list(config["input_features"]) == [
        "observation.images.head", "observation.images.left_wrist", "observation.images.right_wrist",
        "observation.state",
    ]  # fmt: skip
    steps = {}
    for name in ("policy_preprocessor", "policy_postprocessor"):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["name"] == name
        steps[name] = content["steps"]
        for index, step in enumerate(content["steps"]):
            if "state_file" in step:
                assert step["state_file"] == f"{name}_step_{index}_{step['registry_name']}.safetensors"
                file = safetensors.open_file(tmp_path / step["state_file"])
                q99 = source.assets.norm_stats.actions.q99[:23]
                np.testing.assert_allclose(file.read("action.q99"), q99, rtol=1e-6)
                assert sorted(file.tensors) == [
                    "action.q01", "action.q99", "observation.state.q01", "observation.state.q99"
                ]  # fmt: skip
    assert sum("state_file" in step for both in steps.values() for step in both) == 2


def test_what_it_cannot_hold_is_refused(source):
    layout = layouts.LAYOUTS["lerobot"]
    with pytest.raises(ValueError, match=r"LeRobot knows the sizes gemma_2b, gemma_300m"):
        layout.require_possible(source)
    data = DataConfig(
        modalities=("rgb", "segmentation"),
        transforms=dataclasses.replace(source.config.data.transforms, delta_fields=("torso",), per_step_norm=True),
    )
    model = dataclasses.replace(STORED, kind="pi0")
    other = dataclasses.replace(source, config=dataclasses.replace(source.config, model=model, data=data))
    with pytest.raises(ValueError, match=r"its kind is pi0.*segmentation.*delta_fields.*for each step"):
        layout.require_possible(other)


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_its_own_classes_read_config_and_statistics(source, tmp_path):
    pytest.importorskip("lerobot.policies.pi05.configuration_pi05")
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    layouts.LAYOUTS["lerobot"].write(source, "float32", tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert (config.type, config.chunk_size, config.tokenizer_max_length) == ("pi05", 32, 24)
    assert [feature.shape for feature in config.output_features.values()] == [(23,)]
    post = PolicyProcessorPipeline.from_pretrained(
        tmp_path,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    stats = source.assets.norm_stats.actions
    top = post(torch.ones(1, 23)).numpy()[0]
    np.testing.assert_allclose(top, stats.q99[:23], rtol=1e-5, atol=1e-6)
