"""Checkpoints for the doctor: healthy ones with a network that has learned, and faults planted in what is around it."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, Generation, TransformConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.evaluation.doctor.examine import own_statistics
from openpi_b1k.evaluation.doctor.replay import Patient
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames, choose_frames
from openpi_b1k.paths import fetch
from openpi_b1k.robots.r1pro import PROPRIO, r1pro
from openpi_b1k.sample import demos
from openpi_b1k.sample.recording import Recording, record
from openpi_b1k.sample.world import GOALS
from openpi_b1k.serving.policy import ModelSample, Policy
from openpi_b1k.transforms.normalize import FieldStats, NormStats
from openpi_b1k.transforms.pipeline import input_pipeline
from openpi_b1k.transforms.tokenize import Tokenizer
from tests import sample_cases

HORIZON = 8
EPISODES = 5
"""Of each goal; the split holds out one of them, and the network learns from the others."""
MANY = 1_000_000
FRAMES = 48
PROMPTS = {goal.task_name: goal.prompt for goal in GOALS}
ARMS = ("left_arm", "right_arm")

RECIPES = {
    "absolute": TransformConfig(tokenizer=SAMPLE_TOKENIZER),
    "grippers last": TransformConfig(tokenizer=SAMPLE_TOKENIZER, state_layout="grippers_last"),
    "arms": TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=ARMS),
    "deltas": TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=("torso", *ARMS)),
    "z-score": TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=ARMS, normalization="zscore"),
    "by step": TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=ARMS, per_step_norm=True),
    "no clip": TransformConfig(tokenizer=SAMPLE_TOKENIZER, delta_fields=ARMS, clip_normalized=None),
}


WIDTH = 30.0
"""Of the kernel, as a squared distance."""
RIDGE = 0.01
HEAD_WEIGHT, WRIST_WEIGHT, STATE_WEIGHT = 1.0, 1.5, 0.3
"""It has to look at every camera, and to see in images where the grippers are: what it ignores harms nobody."""


def coloured(images: dict[str, np.ndarray]) -> np.ndarray:
    """Returns where each camera sees buttons, and the head's the grippers: (row, column, how clearly)."""
    found = []
    for name in sorted(images):
        red, green, blue = np.moveaxis(images[name].astype(np.float64), -1, 0) / 255
        rows, columns = np.mgrid[-1 : 1 : len(red) * 1j, -1 : 1 : len(red) * 1j]
        amounts = (red - np.maximum(green, blue) - 0.15, blue - np.maximum(red, green) - 0.15)
        if name == "head":
            amounts += (np.minimum(red, green) - blue - 0.2, green - np.maximum(red, blue) - 0.05)
        for amount in amounts:
            mass = np.maximum(amount, 0)
            total = mass.sum() + 0.5
            weight = HEAD_WEIGHT if name == "head" else WRIST_WEIGHT
            found += [weight * (places * mass).sum() / total for places in (rows, columns, 1.0)]
    return np.asarray(found)


class KernelRegression:
    """A stand-in for the network: kernel ridge regression from what it is given to normalised chunks.

    Source: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 5.8.
    """

    def __init__(self, inputs: Sequence[ModelSample], tokenizer: Tokenizer, seed: int) -> None:
        """Learns from model samples with their actions; the seed decides which of them."""
        rng = np.random.default_rng(seed)
        self.tokenizer, self.seed = tokenizer, seed
        inputs = [one for one in inputs if rng.random() < 0.9]
        self.images, self.states, prompts = self.features(inputs)
        self.scales = (np.full(self.images.shape[1], 0.6), (0.3 + self.states.std(axis=0)) / STATE_WEIGHT)
        targets = np.stack([one["actions"] for one in inputs])
        self.horizon, self.rows, self.weights = targets.shape[1], {}, {}
        for prompt in set(prompts):
            rows = self.rows[prompt] = np.flatnonzero(np.asarray(prompts) == prompt)
            kernel = self.kernel(self.images[rows], self.states[rows], rows)
            self.weights[prompt] = np.linalg.solve(
                kernel + RIDGE * np.eye(len(rows)), targets[rows].reshape(len(rows), -1)
            )
        self.size = targets.shape[-1]

    def features(self, inputs: Sequence[ModelSample]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        images = np.stack([coloured(one["images"]) for one in inputs])
        states = np.stack([one["state"].clip(-1, 1) for one in inputs])  # as the bins of a prompt
        texts = (self.tokenizer.decode(one["prompt_tokens"][one["prompt_mask"]].tolist()) for one in inputs)
        return images, states, [text.split(", State")[0] for text in texts]

    def kernel(self, images: np.ndarray, states: np.ndarray, rows: np.ndarray) -> np.ndarray:
        apart = sum(
            squared(one / scale, other[rows] / scale)
            for one, other, scale in zip((images, states), (self.images, self.states), self.scales, strict=True)
        )
        return np.exp(-apart / WIDTH)

    def chunks(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        images, states, prompts = self.features(inputs)
        chunks = np.zeros((len(inputs), self.horizon, self.size))
        for place, prompt in enumerate(prompts):
            if prompt in self.rows:
                kernel = self.kernel(images[place : place + 1], states[place : place + 1], self.rows[prompt])
                chunks[place] = (kernel @ self.weights[prompt]).reshape(self.horizon, self.size)
        return chunks


def squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns squared distances between rows, [n, m]."""
    return np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T, 0)


@dataclasses.dataclass(frozen=True)
class Network:
    """What has been learned, with a chunk as long as it is asked for: noise beyond its own horizon."""

    learned: KernelRegression
    action_horizon: int

    def sample(self, inputs: Sequence[ModelSample]) -> np.ndarray:
        chunks = self.learned.chunks(inputs)
        noise = np.random.default_rng(self.learned.seed).standard_normal((self.action_horizon, self.learned.size))
        longer = np.tile(noise, (len(inputs), 1, 1))
        steps = min(self.action_horizon, self.learned.horizon)
        longer[:, :steps] = chunks[:, :steps]
        return longer


def training_frames(config: TrainConfig) -> ChosenFrames:
    """Returns every frame of the config's training episodes."""
    info = contents.CheckpointInfo(0, 0, "", has_ema=False, code_version="")
    return choose_frames(config, info, DataChoice(split="training"), MANY)


def write_data(
    root: pathlib.Path, generation: Generation, change: Callable[[Recording], Recording] = lambda recording: recording
) -> pathlib.Path:
    """Returns the directory of demonstrations, each changed before it is written."""
    entries = []
    for goal in GOALS:
        recordings = [change(record(1 + number, goal, PROPRIO[generation])) for number in range(EPISODES)]
        entries += demos.WRITERS[generation].write_files(root, recordings, 0)
    demos.WRITERS[generation].write_meta(root, entries)
    return root


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint's parts and the data it is examined on."""

    config: TrainConfig
    assets: contents.Assets
    info: contents.CheckpointInfo
    learned: KernelRegression
    root: pathlib.Path

    def write(self, directory: pathlib.Path) -> pathlib.Path:
        """Writes all but the arrays of a checkpoint."""
        for name, content in contents.files(self.config, self.info, self.assets).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return directory

    def load(self, checkpoint: pathlib.Path) -> Patient:
        """Returns the policy of the directory with the stand-in for its network."""
        config, assets = contents.read_config(checkpoint), contents.read_assets(checkpoint)
        tokenizer = Tokenizer(checkpoint / contents.TOKENIZER_FILE)
        network = Network(self.learned, config.model.action_horizon)
        return Patient(Policy(config, assets, tokenizer, network), assets, tokenizer, lambda: None)

    def changed(self, **transforms: object) -> "Case":
        """Returns the case with other transforms in its config."""
        data = self.config.data
        data = dataclasses.replace(data, transforms=dataclasses.replace(data.transforms, **transforms))
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def with_statistics(self, statistics: NormStats) -> "Case":
        """Returns the case with another norm_stats.json."""
        return dataclasses.replace(self, assets=dataclasses.replace(self.assets, norm_stats=statistics))


def make_config(root: pathlib.Path, generation: Generation, transforms: TransformConfig) -> TrainConfig:
    """Returns the config of a run on the data."""
    tiny = sample_cases.tiny_config(root.parent, root, generation)
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, action_horizon=HORIZON, image_size=56),
        data=DataConfig(
            source="sample", generation=generation, root=str(root), sample_demos=1, transforms=transforms, num_workers=0
        ),
    )


def healthy(root: pathlib.Path, generation: Generation, recipe: str, seed: int = 0) -> Case:
    """Returns a checkpoint whose network has learned from what its pipeline gives."""
    config = make_config(root, generation, RECIPES[recipe])
    transforms, robot = config.data.transforms, r1pro(config.data.transforms.state_layout)
    info = contents.CheckpointInfo(
        completed_steps=1, samples_consumed=0, data_fingerprint="", has_ema=False, code_version="",
        state_layout=contents.describe_layout(robot.state), action_layout=contents.describe_layout(robot.action),
    )  # fmt: skip
    statistics = data_statistics(config, transforms)
    tokenizer = Tokenizer(fetch(transforms.tokenizer))
    pipeline = input_pipeline(config.data, config.model, robot, statistics, tokenizer)
    dataset = training_frames(config).dataset
    inputs = [pipeline(dataset.get(number)) for number in range(len(dataset))]
    learned = KernelRegression(inputs, tokenizer, seed)
    return Case(config, contents.Assets(statistics, PROMPTS, tokenizer.model_bytes), info, learned, root)


def data_statistics(config: TrainConfig, transforms: TransformConfig) -> NormStats:
    """Returns the statistics of the config's data under some transforms."""
    return own_statistics(training_frames(config), config, transforms)


def foreign(stats: NormStats, rng: np.random.Generator) -> NormStats:
    """Returns statistics as of another robot: every entry elsewhere, and of another width."""

    def other(field: FieldStats) -> FieldStats:
        shift, width = rng.uniform(0.5, 1.0, field.mean.shape[-1]), rng.uniform(1.5, 2.5, field.mean.shape[-1])
        middle = field.mean + shift * rng.choice([-1, 1], shift.shape)
        half = width * np.maximum(field.q99 - field.q01, 0.1) / 2
        return FieldStats(middle, width * np.maximum(field.std, 0.05), middle - half, middle + half)

    return NormStats(other(stats.state), other(stats.actions))
