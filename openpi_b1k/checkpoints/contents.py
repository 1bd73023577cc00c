"""What lies beside the arrays of a checkpoint, so that its directory alone is enough to serve, resume and convert.

`<completed steps>/` has
`params/`: the weights to act with, `train_state/`: what training needs besides, `lora/`: adapters, if any (Orbax);
`config.json`: the run's TrainConfig, and `checkpoint.json`: CheckpointInfo;
`adapter.json`: what is in `lora/`, see `adapter_info.py`;
`manifest.json`: what the arrays' files must be, see `verification.py`;
`assets/behavior-1k/<generation>-challenge-demos/norm_stats.json`, which is where openpi looks for it;
`assets/prompts.json` and `assets/tokenizer.model`.

Beside the checkpoints, `best.json` says which of them did best on held-out episodes.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import pathlib
import re
import subprocess
import time

import pydantic

from openpi_b1k.checkpoints import adapter_info
from openpi_b1k.config import serialize
from openpi_b1k.config.model import FORBID_EXTRA
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.robots.layout import Layout
from openpi_b1k.transforms.normalize import NormStats

CONFIG_FILE = "config.json"
INFO_FILE = "checkpoint.json"
BEST_FILE = "best.json"
PROMPTS_FILE = "assets/prompts.json"
TOKENIZER_FILE = "assets/tokenizer.model"
NORM_STATS_PATTERN = "assets/*/*/norm_stats.json"
SCHEMA_VERSION = 2
"""Of what lies in a checkpoint and what it means. Version 1 had no number."""
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
HASH_DIGITS = 16


def package_versions() -> dict[str, str]:
    """Returns the installed versions of what arrays and updates depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """One data set of a run."""

    name: str
    fingerprint: str
    """Of its meta files, the episodes chosen and their windows."""
    revision: str
    """Commit it was downloaded from and when, as far as the copy tells."""

    __pydantic_config__ = FORBID_EXTRA

    def __str__(self) -> str:
        """Returns it as part of a log line."""
        return f"{self.name}: fingerprint {self.fingerprint}, revision {self.revision}"


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a run stood and what it was made from."""

    completed_steps: int
    samples_consumed: int
    """Position of the loader: the next sample is this one of the run's order."""
    data_fingerprint: str
    """Of all data sets of the run."""
    has_ema: bool
    """Whether `params/` holds the moving average, and `train_state/` the live parameters."""
    code_version: str
    saved_at: float = dataclasses.field(default_factory=time.time)
    """Unix time in seconds."""
    beyond_openpi: tuple[str, ...] = ()
    """Parts of the model that openpi cannot read."""
    sources: tuple[SourceInfo, ...] = ()
    """The data sets of the run, the main one first."""
    state_layout: tuple[str, ...] = ()
    """What the entries of the model's state are, in order, each as `name size unit`."""
    action_layout: tuple[str, ...] = ()
    """The same for one action."""
    norm_stats_hash: str = ""
    """Of the norm stats, filled in by `files`."""
    prompts_hash: str = ""
    """Of the table of prompts, filled in by `files`."""
    metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Of the held-out episodes at this step, None where one was no number; empty if there was no look at them."""
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    """Devices along each axis of the mesh it was saved on; it can be read onto any other."""
    process_count: int = 1
    """Processes of the run that saved it."""
    package_versions: dict[str, str] = dataclasses.field(default_factory=package_versions)
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__ = FORBID_EXTRA


@dataclasses.dataclass(frozen=True)
class Assets:
    """What turns raw samples into model inputs, beyond the config."""

    norm_stats: NormStats
    prompts: dict[str, str]
    """Task name -> prompt."""
    tokenizer: bytes
    """The SentencePiece model file."""


def beyond_openpi(config: TrainConfig) -> tuple[str, ...]:
    """Returns what of a model openpi cannot read, a sentence each; nothing if it can read all."""
    parts = []
    if config.model.point_clouds:
        parts.append("parameters point_cloud/**: openpi has no encoder of point clouds, and refuses them")
    if "segmentation" in config.data.modalities:
        parts.append("image segmentation: openpi reads the parameters, but gives its model no such image")
    return tuple(parts)


def norm_stats_file(config: TrainConfig) -> str:
    """Returns the path of the norm stats inside a checkpoint, under the data set's name as in openpi's checkpoints."""
    return f"assets/behavior-1k/{config.data.generation}-challenge-demos/norm_stats.json"


def files(config: TrainConfig, info: CheckpointInfo, assets: Assets) -> dict[str, bytes]:
    """Returns {path inside the checkpoint: content} of everything but the arrays."""
    prompts, norm_stats = json.dumps(assets.prompts, indent=2, ensure_ascii=False) + "\n", assets.norm_stats.to_json()
    info = dataclasses.replace(info, norm_stats_hash=text_hash(norm_stats), prompts_hash=text_hash(prompts))
    texts = {
        CONFIG_FILE: serialize.to_json(config),
        INFO_FILE: _info_json(info),
        PROMPTS_FILE: prompts,
        norm_stats_file(config): norm_stats,
    }
    encoded = {path: text.encode() for path, text in texts.items()}
    return encoded | {TOKENIZER_FILE: assets.tokenizer} | adapter_info.files(config)


def with_metrics(files: dict[str, bytes], metrics: dict[str, float]) -> dict[str, bytes]:
    """Returns the files of a checkpoint with `metrics` in its info; values that are no number become None."""
    stored = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    info = dataclasses.replace(_info_of(files[INFO_FILE].decode()), metrics=stored)
    return files | {INFO_FILE: _info_json(info).encode()}


def text_hash(text: str) -> str:
    """Returns the first digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def describe_layout(layout: Layout) -> tuple[str, ...]:
    """Returns a vector's fields for CheckpointInfo: `base 3 m/s, ...`, one text each."""
    return tuple(f"{field.name} {field.size} {field.unit}" for field in layout.fields)


@functools.cache
def code_version() -> str:
    """Returns the package's version and, in a clone, its commit; `+changed` if the clone differs from it."""
    try:
        version = importlib.metadata.version("openpi_b1k")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    clone = pathlib.Path(__file__).parents[2]
    if not (clone / ".git").exists():
        return version
    command = ["git", "-C", str(clone), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changed"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or a clone of another user's
        return version
    return f"{version} {commit}"


def read_config(checkpoint: pathlib.Path) -> TrainConfig:
    """Returns the config of the run that wrote the checkpoint.

    Raises:
        FileNotFoundError: `checkpoint` is not a checkpoint of openpi_b1k; the message names those of a run's directory.
        ValueError: its config is not of this version.
    """
    path = checkpoint / CONFIG_FILE
    if completed_checkpoints(checkpoint):  # a run's directory has a config, too
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: {which_checkpoint(checkpoint)}")
    return serialize.read(path)


def read_info(checkpoint: pathlib.Path) -> CheckpointInfo:
    """Returns where the run stood.

    Raises:
        FileNotFoundError: `checkpoint` is not a checkpoint of openpi_b1k.
        ValueError: its info is not of this version.
    """
    path = checkpoint / INFO_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {INFO_FILE} in {checkpoint}; a checkpoint of openpi_b1k has one beside params/")
    text = path.read_text()
    try:
        stored = json.loads(text)
        version = stored.get("schema_version", 1)
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{checkpoint} has schema version {version}, and this code reads and writes {SCHEMA_VERSION}: use the "
                f"code that wrote it ({stored.get('code_version', 'unknown')}), or start a new run from its weights "
                f"with --weights {checkpoint}"
            )
        return _info_of(text)
    except (pydantic.ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not of this version: {error}") from error


def _info_json(info: CheckpointInfo) -> str:
    return json.dumps(dataclasses.asdict(info), indent=2, allow_nan=False) + "\n"


def _info_of(text: str) -> CheckpointInfo:
    return pydantic.TypeAdapter(CheckpointInfo).validate_json(text)


def read_assets(checkpoint: pathlib.Path) -> Assets:
    """Returns norm stats, prompts and tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: there are norm stats of several data sets.
    """
    found = sorted(checkpoint.glob(NORM_STATS_PATTERN))
    if len(found) > 1:
        raise ValueError(f"{checkpoint} has norm stats of {len(found)} data sets, expected one: {found}")
    for path in (*(found or [checkpoint / NORM_STATS_PATTERN]), checkpoint / PROMPTS_FILE, checkpoint / TOKENIZER_FILE):
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; a checkpoint of openpi_b1k has one")
    return Assets(
        norm_stats=NormStats.from_json(found[0].read_text()),
        prompts=json.loads((checkpoint / PROMPTS_FILE).read_text()),
        tokenizer=(checkpoint / TOKENIZER_FILE).read_bytes(),
    )


def completed_checkpoints(run: pathlib.Path) -> list[int]:
    """Returns the completed steps of each checkpoint in a run's directory, ascending; half-written ones are not seen.

    A checkpoint gets its name of digits when all of it is written; before, it is called `<steps>.orbax-checkpoint-tmp`.
    """
    if not run.is_dir():
        return []
    return sorted(int(entry.name) for entry in run.iterdir() if re.fullmatch(r"\d+", entry.name) and entry.is_dir())


@dataclasses.dataclass(frozen=True)
class Best:
    """The checkpoint of a run that did best on held-out episodes."""

    step: int
    metric: str
    """What it was chosen by, the lower the better."""
    value: float

    __pydantic_config__ = FORBID_EXTRA


def best_checkpoint(run: pathlib.Path) -> Best | None:
    """Returns the best of a run's checkpoints; None where none has been chosen, or it has been deleted by hand.

    Raises:
        ValueError: the record is not of this version.
    """
    path = run / BEST_FILE
    if not path.is_file():
        return None
    try:
        best = pydantic.TypeAdapter(Best).validate_json(path.read_text())
    except pydantic.ValidationError as error:
        raise ValueError(f"{path} is not of this version; delete it to go on without: {error}") from error
    return best if (run / str(best.step)).is_dir() else None


def which_checkpoint(run: pathlib.Path) -> str:
    """Returns what to say where a run's directory was given and one of its checkpoints is needed."""
    steps = completed_checkpoints(run)
    return (
        f"it is a run's directory; give one of its checkpoints ({', '.join(map(str, steps))}), such as "
        f"{run / str(steps[-1])}"
    )
