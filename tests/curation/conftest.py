"""Data sets of the tests of the curation room."""

import pathlib
import shutil
from collections.abc import Callable

import pytest

NAMES = {"2025": "b1k_2025", "2026": "lerobot_v30"}


@pytest.fixture
def copies(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    """Returns a function that copies a fixture, to be damaged."""

    def copy(generation: str) -> pathlib.Path:
        ignore = shutil.ignore_patterns("expected.npz", "README.md")
        return shutil.copytree(data_dir / NAMES[generation], tmp_path / generation, ignore=ignore)

    return copy
