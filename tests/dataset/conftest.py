"""Data sets of the tests of the data room."""

import pathlib
import shutil

import pytest

from openpi_b1k.config.train import TrainConfig
from tests.dataset.dataset_cases import NAMES, make_config


@pytest.fixture(params=["2025", "2026"])
def generation(request) -> str:
    return request.param


@pytest.fixture
def root(data_dir, generation) -> pathlib.Path:
    return data_dir / NAMES[generation]


@pytest.fixture
def config(generation, root) -> TrainConfig:
    return make_config(generation, root)


@pytest.fixture
def copies(data_dir, tmp_path):
    """Returns a function that copies the meta and data files of a fixture, to be damaged."""

    def copy(generation: str, *, with_videos: bool = False) -> pathlib.Path:
        ignore = None if with_videos else shutil.ignore_patterns("*.mp4", "*.npz")
        return shutil.copytree(data_dir / NAMES[generation], tmp_path / generation, ignore=ignore)

    return copy
