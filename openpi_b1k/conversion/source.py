"""What a conversion starts from, besides the weights: the model's config, what is known of the run, and the assets."""

import dataclasses
import json
import pathlib
import re

from openpi_b1k import paths
from openpi_b1k.checkpoints import contents
from openpi_b1k.config.model import LoraConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.transforms.normalize import NormStats

NORM_STATS = "norm_stats.json"
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Source:
    """All of a model but its weights."""

    config: TrainConfig
    info: contents.CheckpointInfo
    assets: contents.Assets

    def files(self) -> dict[str, bytes]:
        """Returns {path: content} of what lies beside the weights in a checkpoint."""
        return contents.files(self.config, self.info, self.assets)


def describe(directory: pathlib.Path, recipe: TrainConfig | None, norm_stats: pathlib.Path | None) -> Source:
    """Returns what is known of the model at `directory`.

    Args:
        directory: a checkpoint, its params directory, a directory with model.safetensors, or that file.
        recipe: the config, for a model that does not bring its own.
        norm_stats: a norm_stats.json, or a directory that has one; default: those of the model.

    Raises:
        FileNotFoundError: config, norm stats or tokenizer are missing; tells which flag to give.
        ValueError: there is a config, and a recipe was given as well; or there are several norm stats.
    """
    directory = _root(directory)
    is_ours = (directory / contents.INFO_FILE).is_file()
    if is_ours and recipe is not None:
        raise ValueError(f"{directory} has a config of its own; leave out --recipe and the recipe's flags")
    if is_ours:
        config, info = contents.read_config(directory), contents.read_info(directory)
    elif recipe is not None:
        config, info = recipe, _unknown_run(directory)
    else:
        hint = (
            contents.which_checkpoint(directory)
            if contents.completed_checkpoints(directory)
            else ("give --recipe NAME, and --model.* flags where its sizes differ from the recipe's")
        )
        raise FileNotFoundError(f"{directory} has no {contents.INFO_FILE}, so its config is not known: {hint}")
    return Source(merged(config), info, _assets(directory, config, norm_stats))


def merged(config: TrainConfig) -> TrainConfig:
    """Returns the config of a run whose adapters have been merged into its kernels; others as they are."""
    if not config.model.lora.roles:
        return config
    dense = dataclasses.replace(config.model, lora=LoraConfig())
    return dataclasses.replace(config, model=dense, freeze=(), train_expert_only=False)


def _root(path: pathlib.Path) -> pathlib.Path:
    """Returns the directory that the assets lie in, of weights in whatever form."""
    is_params = path.name == "params" and (path / "_METADATA").is_file()
    return path.parent if path.is_file() or is_params else path


def _unknown_run(directory: pathlib.Path) -> contents.CheckpointInfo:
    steps = int(directory.name) if re.fullmatch(r"\d+", directory.name) else 0
    return contents.CheckpointInfo(
        completed_steps=steps,
        samples_consumed=0,
        data_fingerprint=UNKNOWN,
        has_ema=False,
        code_version=contents.code_version(),
    )


def _assets(directory: pathlib.Path, config: TrainConfig, norm_stats: pathlib.Path | None) -> contents.Assets:
    stats = NormStats.from_json(_norm_stats_file(directory, norm_stats).read_text())
    prompts, tokenizer = directory / contents.PROMPTS_FILE, directory / contents.TOKENIZER_FILE
    if not tokenizer.is_file():
        tokenizer = paths.fetch(config.data.transforms.tokenizer)
    return contents.Assets(
        norm_stats=stats,
        prompts=json.loads(prompts.read_text()) if prompts.is_file() else {},
        tokenizer=tokenizer.read_bytes(),
    )


def _norm_stats_file(directory: pathlib.Path, given: pathlib.Path | None) -> pathlib.Path:
    if given is not None and given.is_file():
        return given
    where = directory if given is None else given
    found = sorted((where / "assets").rglob(NORM_STATS)) if given is None else sorted(where.rglob(NORM_STATS))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(
            f"no norm stats at {where}; give --norm-stats FILE, which scripts/compute_norm_stats.py makes of the data"
        )
    listed = ", ".join(str(path.relative_to(where)) for path in found)
    raise ValueError(f"{where} has norm stats of several data sets ({listed}); say with --norm-stats which to take")
