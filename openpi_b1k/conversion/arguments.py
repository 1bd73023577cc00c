"""The command lines of the conversion scripts: flags of their own, and a recipe's for a model without a config."""

import argparse
import pathlib
import sys
from types import ModuleType

from openpi_b1k.config import cli
from openpi_b1k.config.train import TrainConfig

EPILOG = """A model that was not trained or converted here has no config of its own. Then give --recipe NAME, and
--model.* flags where its sizes differ from the recipe's (`scripts/train.py NAME --help` lists them). Recipes: """


def parser(description: str | None, recipes: ModuleType) -> argparse.ArgumentParser:
    """Returns a parser with the flags of both scripts."""
    own = argparse.ArgumentParser(
        description=description,
        epilog=EPILOG + ", ".join(cli.load_recipes(recipes)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.add_argument("--output", type=pathlib.Path, required=True, help="a directory that does not exist yet")
    own.add_argument("--recipe", help="config of a model that does not bring its own")
    own.add_argument(
        "--norm-stats", type=pathlib.Path, help="a norm_stats.json, or a directory with one; default: the model's"
    )
    return own


def parse(own: argparse.ArgumentParser, recipes: ModuleType) -> tuple[argparse.Namespace, TrainConfig | None]:
    """Returns the script's own flags and the config that the recipe and its flags give, None without a recipe.

    Exits with a sentence for a flag that is not known.
    """
    given, rest = own.parse_known_args(sys.argv[1:] or ["--help"])
    if given.recipe is None:
        if rest:
            own.error(f"unknown: {' '.join(rest)}; a recipe's flags need --recipe NAME")
        return given, None
    return given, cli.parse(recipes, [given.recipe, *rest])
