import numpy as np
import pytest

from openpi_b1k.evaluation import parity
from openpi_b1k.evaluation.parity import Comparison, largest_error
from scripts import parity as script


@pytest.mark.parametrize(
    "name", ["pi05_f32", "pi05_masked_f32", "pi05_bf16", "pi0_f32", "pi05_lora_f32", "b1k_transforms"]
)
def test_stored_references_agree(data_dir, name):
    results = parity.compare_file(data_dir / f"{name}.npz")
    assert [str(result) for result in results if not result.is_within] == []
    assert sum(isinstance(result, Comparison) for result in results) >= 9


def transforms(data_dir, **changes) -> dict:
    with np.load(data_dir / "b1k_transforms.npz") as stored:
        return {name: stored[name] for name in stored if name.startswith(("b1k/", "delta/"))} | changes


def test_the_exit_status_tells(data_dir, tmp_path, capsys):
    path = tmp_path / "reference.npz"
    np.savez(path, **transforms(data_dir))
    assert script.run(script.Args((path,))) == 0
    np.savez(path, **transforms(data_dir, **{"b1k/out/state": np.ones(23, np.float32)}))
    assert script.run(script.Args((path,))) == 1
    assert "BEYOND TOLERANCE" in capsys.readouterr().out
    assert script.run(script.Args((tmp_path / "none.npz",))) == 2
    assert script.run(script.Args(())) == 2
    assert "no reference at" in capsys.readouterr().err


def test_what_is_not_built_is_skipped_by_name(tmp_path):
    path = tmp_path / "control.npz"
    np.savez(path, **{"control/in/chunks": np.zeros(1)})
    assert "skipped: ways to execute" in parity.report([path])[0]


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="neither `meta`, as a model does, nor a group of transforms: b1k, resize"):
        parity.compare_file(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text.npz is not an .npz file"):
        parity.compare_file(tmp_path / "text.npz")


def test_an_error_that_is_no_number_is_beyond_tolerance():
    assert not Comparison("velocity", largest_error(np.array([np.nan]), np.zeros(1)), 1e-5).is_within
    assert not Comparison("velocity", largest_error(np.zeros(2), np.zeros(3)), 1e-5).is_within
