import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openpi_b1k import sharding
from openpi_b1k.checkpoints import openpi_rules, pytorch_rules, safetensors
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.checkpoints.weights import open_weights, require_model
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.models.pi0 import Model

# The sizes of the stored checkpoint: fixtures' README, `meta` of pi05_f32.npz.
STORED = ModelConfig(
    vision=SiglipConfig(width=32, depth=1, mlp_dim=128, num_heads=2),
    vlm=GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    action_expert=GemmaConfig(width=32, depth=4, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16),
    vocab_size=512,
    dtype="float32",
)
GROUPED = dataclasses.replace(GEMMA_TINY, num_heads=6, num_kv_heads=2, head_dim=4, depth=3)
SMALL = ModelConfig(
    vision=dataclasses.replace(SIGLIP_TINY, depth=2, width=24),
    vlm=GROUPED,
    action_expert=dataclasses.replace(GROUPED, width=20, mlp_dim=28),
    vocab_size=40,
    image_size=28,
    action_dim=23,
)
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EMBED_TOKENS = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
NORM = "paligemma_with_expert.paligemma.model.language_model.norm.weight"


def abstract_of(config):
    return Model(config).abstract_params()


def random_tensors(config):
    numbers = np.random.default_rng(0)
    shapes = pytorch_rules.keys(config)
    return {key: numbers.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def write(path, tensors):
    path.parent.mkdir(exist_ok=True, parents=True)
    entries = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    with safetensors.Writer(path, entries, {}) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)
    return path


def load(path, config=STORED, **options):
    model = Model(config)
    places = sharding.param_shardings(sharding.make_mesh(4), model.abstract_params(), model.logical_axes())
    return load_params(path, model.abstract_params(), places, **options), places


@pytest.mark.parametrize("where", ["openpi_pytorch", "openpi_pytorch/model.safetensors"])
def test_openpis_pytorch_file_is_its_checkpoint(data_dir, where, caplog):
    with caplog.at_level("INFO"):
        params, places = load(data_dir / where)
    expected = open_weights(data_dir / "openpi_checkpoint" / "7")
    assert flatten(params).keys() == expected.leaves.keys()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, expected.read(name), err_msg=name)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == places
    assert "weights: 51 arrays of " in caplog.text
    layer = "paligemma_with_expert.paligemma.model.language_model.layers.{i}"
    rule = f"8 x {layer}.mlp.gate_proj.weight and {layer}.mlp.up_proj.weight -> vlm/layers/mlp/gate_up/kernel"
    assert rule in caplog.text
    assert (
        "skipped: 1\n  paligemma_with_expert.gemma_expert.lm_head.weight: openpi's models never use it" in caplog.text
    )


@pytest.mark.parametrize("kind", ["pi05", "pi0"])
def test_any_size_and_kind_is_read_from_either_layout(kind, tmp_path):
    config = dataclasses.replace(SMALL, kind=kind, point_clouds=True)
    tensors = random_tensors(config)
    file = write(tmp_path / "model.safetensors", tensors)
    like = abstract_of(config)
    weights = open_weights(file, like=like)
    assert weights.model_kind == kind
    require_model(weights, like)
    leaves = {name: weights.read(name) for name in weights.leaves}
    assert all(leaf.shape == flatten(like)[name].shape for name, leaf in leaves.items())
    item = openpi_rules.with_value_leaves(openpi_rules.to_openpi(unflatten(leaves)))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "7" / "params", item)
    stored = open_weights(tmp_path / "7")
    assert stored.model_kind == kind
    back = {key: tensor for name in leaves for key, tensor in pytorch_rules.to_pytorch(name, stored.read(name))}
    assert tensors.keys() - back.keys() == {pytorch_rules.FILLED_WITH_ZEROS}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[key], err_msg=key, strict=True)


def test_files_that_an_index_lists_are_one_model(data_dir, tmp_path):
    file = safetensors.open_file(data_dir / "openpi_pytorch")
    tensors = {key: file.read(key) for key in file.tensors}
    places = {key: f"{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for name in ("0.safetensors", "1.safetensors"):
        write(tmp_path / name, {key: tensor for key, tensor in tensors.items() if places[key] == name})
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": places}))
    found, expected = (open_weights(path, like=abstract_of(STORED)) for path in (tmp_path, data_dir / "openpi_pytorch"))
    name = "vlm/layers/mlp/gate_up/kernel"
    np.testing.assert_array_equal(found.read(name), expected.read(name))


def test_lerobots_keys_are_read(tmp_path):
    tensors = random_tensors(SMALL)
    wrapped = {f"model.{key}": tensor for key, tensor in tensors.items()}
    twice = wrapped | {f"model.{EMBED_TOKENS}": tensors[LM_HEAD]}
    once = {key: tensor for key, tensor in twice.items() if key != f"model.{LM_HEAD}"}
    like = abstract_of(SMALL)
    for name, content in {"plain": wrapped, "twice": twice, "once": once}.items():
        weights = open_weights(write(tmp_path / name / "model.safetensors", content).parent, like=like)
        require_model(weights, like)
        np.testing.assert_array_equal(weights.read("vlm/embedder/embedding"), tensors[LM_HEAD])
        skipped = {f"model.{pytorch_rules.FILLED_WITH_ZEROS}": "openpi's models never use it"}
        if name == "twice":
            skipped[f"model.{EMBED_TOKENS}"] = f"equal to model.{LM_HEAD}"
        assert weights.skipped == skipped
    other = twice | {f"model.{EMBED_TOKENS}": tensors[LM_HEAD] + 1}
    with pytest.raises(ValueError, match="has two tables of embeddings that differ"):
        open_weights(write(tmp_path / "other" / "model.safetensors", other), like=like)


def test_bfloat16_is_read_as_it_is_stored_and_cast_on_the_way(tmp_path):
    tensors = {key: tensor.astype(jax.numpy.bfloat16) for key, tensor in random_tensors(SMALL).items()}
    path = write(tmp_path / "model.safetensors", tensors)
    weights = open_weights(path, like=abstract_of(SMALL))
    assert {leaf.dtype for leaf in weights.leaves.values()} == {np.dtype(jax.numpy.bfloat16)}
    params, _ = load(path, SMALL)
    leaf = params["vlm"]["final_norm"]["scale"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, tensors[NORM].astype(np.float32))


def test_an_encoder_that_is_not_stored_is_drawn_and_reported(tmp_path, caplog):
    path = write(tmp_path / "model.safetensors", random_tensors(SMALL))
    seeing = dataclasses.replace(SMALL, point_clouds=True)
    with pytest.raises(ValueError, match="missing 'point_cloud/mlp_hidden/bias'"):
        load(path, seeing)
    fresh = {"point_cloud": object()}
    with caplog.at_level("INFO"):
        params, _ = load(path, seeing, draw=lambda groups: fresh)
    assert params["point_cloud"] is fresh["point_cloud"]
    assert "initialised with random numbers: 6\n  point_cloud/mlp_hidden/bias\n" in caplog.text


@pytest.mark.parametrize(("stored", "wanted"), [("pi0", "pi05"), ("pi05", "pi0")])
def test_the_other_kind_is_refused_with_the_recipe_to_use(stored, wanted, tmp_path):
    path = write(tmp_path / "model.safetensors", random_tensors(dataclasses.replace(SMALL, kind=stored)))
    message = f"holds a model of kind {stored}, but the config asks for {wanted}: use recipe {stored}_b1k"
    with pytest.raises(ValueError, match=message):
        load(path, dataclasses.replace(SMALL, kind=wanted))


def test_the_other_kind_is_refused_in_openpis_layout_too(data_dir):
    with pytest.raises(
        ValueError, match="holds a model of kind pi05, but the config asks for pi0: use recipe pi05_b1k"
    ):
        load(data_dir / "openpi_checkpoint" / "7", dataclasses.replace(STORED, kind="pi0"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_dim": 24}, "suffix/action_in_proj/kernel is (23, 20) there and (24, 20) here (--model.action-dim"),
        ({"image_size": 42}, "vision/pos_embedding is (1, 4, 24) there and (1, 9, 24) here (--model.image-size"),
        ({"vocab_size": 41}, "vlm/embedder/embedding is (40, 32) there and (41, 32) here (--model.vocab-size"),
        ({"vision": dataclasses.replace(SMALL.vision, depth=1)}, "is (2, 24) there and (1, 24) here (--model.vision.*"),
        (
            {name: dataclasses.replace(getattr(SMALL, name), num_heads=8) for name in ("vlm", "action_expert")},
            "vlm/layers/attn/q/kernel is (3, 8, 32, 3) there and (3, 8, 32, 4) here (--model.vlm.*)",
        ),
        (
            {"vlm": dataclasses.replace(SMALL.vlm, width=36)},
            "vlm/layers/attn/out/kernel is (3, 6, 4, 32) there and (3, 6, 4, 36) here (--model.vlm.*)",
        ),
    ],
    ids=["action_dim", "image_size", "vocabulary", "depth", "heads", "width"],
)
def test_another_size_is_refused_with_the_flags_that_set_it(change, message, tmp_path):
    path = write(tmp_path / "model.safetensors", random_tensors(SMALL))
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match="model of another size") as error:
        require_model(open_weights(path, like=abstract_of(config)), abstract_of(config))
    assert message in str(error.value)


def without(tensors, key):
    return {name: tensor for name, tensor in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, NORM), "missing 'vlm/final_norm/scale'"),
        (
            lambda t: without(t, NORM.replace("norm", "layers.1.input_layernorm")),
            "lacks 1 tensors: 'paligemma_with_expert.paligemma.model.language_model.layers.1.input_layernorm.weight' "
            "(nearest: 'paligemma_with_expert",
        ),
        (lambda t: t | {"value_head.weight": t[NORM]}, "no rule for 'value_head.weight'; nearest: "),
        (lambda t: t | {NORM: t[NORM].astype(np.float16)}, f"{NORM} is float16: convert them from the checkpoint"),
        (lambda t: t | {NORM: t[NORM].astype(np.int32)}, f"{NORM} is int32"),
        (lambda t: t | {NORM: t[NORM][None]}, "a tensor of vlm/final_norm/scale cannot be of shape (1, 32)"),
    ],
    ids=["missing leaf", "missing layer", "unknown", "float16", "integers", "axes"],
)
def test_tensors_that_are_not_the_models_are_refused(change, message, tmp_path):
    path = write(tmp_path / "model.safetensors", change(random_tensors(SMALL)))
    with pytest.raises(ValueError, match=re.escape(message)):
        load(path, SMALL)


def test_a_tensor_of_another_layer_of_another_size_is_refused(tmp_path):
    tensors, key = random_tensors(SMALL), NORM.replace("norm", "layers.1.input_layernorm")
    path = write(tmp_path / "model.safetensors", tensors | {key: tensors[key][:-1]})
    with pytest.raises(ValueError, match=re.escape(f"{key} is (31,), of this model it is (32,)")):
        load(path, SMALL)


def test_a_file_that_is_cut_off_is_refused(data_dir, tmp_path):
    content = (data_dir / "openpi_pytorch" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"is cut off: its header tells of \d+ bytes of data, there are \d+"):
        load(tmp_path)


def test_types_that_are_no_weights_are_refused_in_openpis_layout_too(tmp_path):
    numbers = {"action_in_proj": {"kernel": np.zeros((2, 3), np.float16)}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", {"params": numbers})
    with pytest.raises(ValueError, match=r"suffix/action_in_proj/kernel is float16: convert them"):
        load(tmp_path)


def test_what_a_safetensors_file_does_not_say_is_asked_for(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"how many heads \S+ has is not stored in a safetensors file"):
        open_weights(data_dir / "openpi_pytorch")
    with pytest.raises(ValueError, match="holds one set of weights, those to act with; ask for the kind `ema`"):
        open_weights(data_dir / "openpi_pytorch", "live", like=abstract_of(STORED))
    shutil.copytree(data_dir / "openpi_checkpoint" / "7" / "params", tmp_path / "params")
    shutil.copy(data_dir / "openpi_pytorch" / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"has weights twice, as model\.safetensors and as .*/params; give the one"):
        open_weights(tmp_path)
    for given in ("params", "model.safetensors"):
        assert "vlm/final_norm/scale" in open_weights(tmp_path / given, like=abstract_of(STORED)).leaves


def test_a_name_that_is_not_there_is_refused(data_dir):
    for where in ("openpi_pytorch", "openpi_checkpoint/7"):
        with pytest.raises(KeyError, match="has no parameter 'vlm/norm'"):
            open_weights(data_dir / where, like=abstract_of(STORED)).read("vlm/norm")
