import dataclasses

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows needs torch

from openpi_b1k.checkpoints import pytorch_rules, safetensors
from openpi_b1k.pytorch import model_file
from openpi_b1k.pytorch.weights import EMBEDDING, PROJECTOR, as_tensor
from tests.pytorch import cases


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Returns a directory with the file of a tiny model."""
    directory = tmp_path_factory.mktemp("model")
    cases.write_file(directory, cases.CONFIG, cases.random_params(cases.CONFIG))
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_cast_to_the_type_they_are_computed_with(directory, dtype):
    tensors = model_file.load_tensors(directory, cases.CONFIG, device="cpu", dtype=dtype)
    expected = cases.tensors_of(cases.random_params(cases.CONFIG))
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        layer = ".layers." in key and "norm" not in key
        is_cast = layer or key.startswith(PROJECTOR)
        assert tensor.dtype == (dtype if is_cast else torch.float32), key
        torch.testing.assert_close(tensor, torch.tensor(expected[key]).to(tensor.dtype), rtol=0, atol=0)
    assert tensors[EMBEDDING].dtype == torch.float32


def test_the_network_is_of_the_configs_type_unless_told(directory):
    assert model_file.load(directory, cases.CONFIG).dtype == torch.float32
    assert model_file.load(directory / safetensors.FILE, cases.CONFIG, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_file_of_another_model_is_refused(directory, tmp_path):
    with pytest.raises(ValueError, match=r"11 tensors are missing \['action_time_mlp_in\.bias'.*14 unexpected"):
        model_file.load(directory, dataclasses.replace(cases.CONFIG, kind="pi0"))
    with pytest.raises(ValueError, match=r"action_in_proj.weight is \(16, 6\), of this model \(16, 7\)"):
        model_file.load(directory, dataclasses.replace(cases.CONFIG, action_dim=7))
    with pytest.raises(FileNotFoundError, match=r"no .*model\.safetensors"):
        model_file.load(tmp_path, cases.CONFIG)


def test_a_tensor_too_many_or_of_another_type_is_refused():
    expected = pytorch_rules.keys(cases.CONFIG)
    found = {key: (np.dtype(np.float32), shape) for key, shape in expected.items()}
    model_file.require_same(found, expected, "file")
    with pytest.raises(ValueError, match=r"0 tensors are missing \[\], 1 unexpected \['lora'\]"):
        model_file.require_same(found | {"lora": found[EMBEDDING]}, expected, "file")
    half = found | {EMBEDDING: (np.dtype(np.float16), expected[EMBEDDING])}
    with pytest.raises(ValueError, match=r"lm_head\.weight as float16; float32 and bfloat16 are supported"):
        model_file.require_same(half, expected, "file")


def test_arrays_become_tensors():
    for array in (np.arange(4, dtype=np.float32), np.arange(4), np.array([True, False])):
        np.testing.assert_array_equal(as_tensor(array).numpy(), array)
        assert as_tensor(array).data_ptr() == array.ctypes.data  # not copied
    brain = np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16)
    assert as_tensor(brain).dtype == torch.bfloat16
    np.testing.assert_array_equal(as_tensor(brain).float().numpy(), brain.astype(np.float32))
    frozen = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    frozen.flags.writeable = False  # torch warns about these: they are copied
    np.testing.assert_array_equal(as_tensor(frozen).numpy(), frozen)
