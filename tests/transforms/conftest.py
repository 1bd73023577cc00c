"""What the transforms' tests share."""

import pathlib

import hypothesis
import numpy as np
import pytest

from openpi_b1k import paths
from openpi_b1k.transforms.normalize import FieldStats, NormStats
from openpi_b1k.transforms.tokenize import Tokenizer

hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def reference(data_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what openpi and openpi-comet compute (see the README of the stored references)."""
    with np.load(data_dir / "b1k_transforms.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="session")
def norm_stats(reference: dict[str, np.ndarray]) -> NormStats:
    """Returns the stored statistics, for state and actions."""
    field = FieldStats(**{name: reference[f"norm/out/{name}"] for name in ("mean", "std", "q01", "q99")})
    return NormStats(field, field)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Returns the tokenizer that ships in the package."""
    return Tokenizer(paths.fetch("package:sample_tokenizer.model"))
