"""scripts/compute_norm_stats.py in parts, and what its help says; test_open.py runs it whole."""

import json
import pathlib
import subprocess
import sys

import numpy as np

from tests.dataset.dataset_cases import NAMES


def run_script(*args, status=0):
    command = [sys.executable, "scripts/compute_norm_stats.py", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_script_computes_parts_and_merges_them(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path))
    recipe = ("pi05_b1k", "--data.root", str(data_dir / NAMES["2025"]))
    whole = run_script(*recipe).splitlines()
    path = pathlib.Path(whole[-1])
    expected = json.loads(path.read_text())["norm_stats"]
    for kept in path.parent.iterdir():
        kept.unlink()
    assert "--shard 0/N to (N-1)/N" in run_script(*recipe, "--merge", status=2)
    for part in ("0/2", "1/2"):
        done = run_script(*recipe, "--shard", part)
        assert done.splitlines()[0].endswith(f".part-{part.replace('/', '-of-')}.npz")
    merged = run_script("--merge", *recipe).splitlines()
    assert merged[-1] == str(path)
    assert merged[: len(whole) - 2] == whole[:-2]  # the table: all but the speed and the path
    found = json.loads(path.read_text())["norm_stats"]
    for field, numbers in expected.items():
        for name, values in numbers.items():
            np.testing.assert_allclose(found[field][name], values, rtol=1e-9, atol=1e-12)
    assert "give one of them" in run_script(*recipe, "--merge", "--shard", "0/2", status=2)


def test_help_of_the_script_shows_its_own_flags():
    for args in (["--help"], ["pi05_b1k", "-h"]):
        text = run_script(*args)
        assert "--shard I/N" in text
        assert "--merge" in text
        assert "pi05_b1k" in text
