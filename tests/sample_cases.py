"""Data and a checkpoint of the sample world, small enough for every test run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import jax

from configs import debug
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, Generation, Modality, TransformConfig
from openpi_b1k.config.optimization import ScheduleConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data.open import open_training_data
from openpi_b1k.sample import demos
from openpi_b1k.training import loop
from openpi_b1k.training.start import start

NUM_DEMOS = 8
NUM_EPISODES = 4  # in all tests, so that one batch size is compiled


def write_data(directory: pathlib.Path, generation: Generation, modalities: tuple[Modality, ...] = ("rgb",)) -> None:
    """Writes NUM_DEMOS demonstrations as `demos.write` does, but in this process."""
    files = demos.group_into_files(NUM_DEMOS)
    episodes = [entry for file in files for entry in demos.write_file(directory, generation, file, modalities)]
    demos.WRITERS[generation].write_meta(directory, episodes, modalities)


def tiny_config(directory: pathlib.Path, root: pathlib.Path, generation: Generation) -> TrainConfig:
    """Returns a run of one step of a tiny model on the data at `root`."""
    transforms = TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=("left_arm", "right_arm"))
    tiny = dataclasses.replace(debug.CONFIG.model.vlm, depth=1)
    return dataclasses.replace(
        debug.CONFIG,
        name="tiny",
        exp_name="run",
        checkpoint_dir=str(directory),
        model=dataclasses.replace(
            debug.CONFIG.model,
            vlm=tiny,
            action_expert=tiny,
            image_size=14,
            action_horizon=25,
            max_prompt_tokens=192,
            num_flow_steps=2,
        ),
        data=DataConfig(
            source="sample",
            generation=generation,
            root=str(root),
            sample_demos=NUM_DEMOS,
            transforms=transforms,
            num_workers=0,
        ),
        schedule=ScheduleConfig(warmup=0.0),
        batch_size=4,
        num_steps=1,
    )


def train(config: TrainConfig) -> pathlib.Path:
    """Returns the checkpoint of a run, through the real training path."""
    with quick_compilation():
        return loop.train(start(config, open_training_data(config)))


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Compiles with little optimisation while entered: most of these tests' time otherwise."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
