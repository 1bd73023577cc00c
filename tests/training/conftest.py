"""A run in a few seconds: the debug recipe, a little smaller."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import pytest

from configs import debug
from openpi_b1k.config.train import CheckpointConfig, TrainConfig
from openpi_b1k.data.open import open_training_data
from openpi_b1k.training import loop
from openpi_b1k.training.start import start


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles with little optimisation, and once for all runs of a config: most of these tests' time otherwise."""
    options = {  # name: (value here, jax's default)
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (str(tmp_path_factory.getbasetemp() / "compiled"), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    }
    for name, (value, _) in options.items():
        jax.config.update(name, value)
    yield
    for name, (_, default) in options.items():
        jax.config.update(name, default)


def make_small_config(directory: pathlib.Path) -> TrainConfig:
    """Returns a config of six steps on four devices that saves every third and keeps an average."""
    expert = dataclasses.replace(debug.CONFIG.model.vlm, depth=1)
    return dataclasses.replace(
        debug.CONFIG,
        name="debug",
        exp_name="run",
        checkpoint_dir=str(directory / "checkpoints"),
        model=dataclasses.replace(debug.CONFIG.model, vlm=expert, action_expert=expert, image_size=14),
        checkpoints=CheckpointConfig(save_every=3, keep_last=3, keep_every=None),
        batch_size=4,
        ema_decay=0.9,
        fsdp=4,
        num_steps=6,
        log_every=3,
    )


@pytest.fixture
def small_config(tmp_path: pathlib.Path) -> TrainConfig:
    """Returns `make_small_config` of a directory of the test's own."""
    return make_small_config(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Returns the config of a run of six steps that was never interrupted."""
    config = make_small_config(tmp_path_factory.mktemp("whole"))
    loop.train(start(config, open_training_data(config)))
    return config
