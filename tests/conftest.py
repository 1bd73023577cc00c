"""Every test runs on four fake CPU devices, without the network."""

import os
import pathlib
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little, so the compiler need not try hard.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["WANDB_MODE"] = "disabled"

import pytest


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Returns the directory of stored references."""
    return pathlib.Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests out of the user's cache and away from the user's data."""
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("OPENPI_B1K_DATA", raising=False)


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """Returns a function from a generation to a small data set of the sample world, written once.

    Modalities besides RGB may follow: `sample_root("2025", "depth", "segmentation")`.
    """
    from tests import sample_cases

    def root(generation: str, *extra: str) -> pathlib.Path:
        directory = tmp_path_factory.getbasetemp() / "-".join(["sample", generation, *sorted(extra)])
        if not directory.exists():
            sample_cases.write_data(directory, generation, ("rgb", *extra))
        return directory

    return root


@pytest.fixture(scope="session")
def sample_checkpoint(
    sample_root: Callable[..., pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Returns a checkpoint of a tiny model after one step on `sample_root("2025")`."""
    from tests import sample_cases

    config = sample_cases.tiny_config(tmp_path_factory.mktemp("checkpoints"), sample_root("2025"), "2025")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENPI_B1K_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return sample_cases.train(config)
