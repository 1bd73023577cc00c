"""The command line: each module of a package of recipes is a subcommand, each config field a flag."""

import dataclasses
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import tyro

from openpi_b1k.config.train import TrainConfig


def load_recipes(package: ModuleType) -> dict[str, tuple[TrainConfig, str]]:
    """Returns {recipe name: (config, first line of its docstring)} for every module of `package`."""
    recipes = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        summary = (module.__doc__ or "").strip().split("\n")[0]
        recipes[info.name] = (dataclasses.replace(module.CONFIG, name=info.name), summary)
    return recipes


def addresses(package: ModuleType, name: str) -> list[str]:
    """Returns the addresses of the weights and tokenizers that a recipe would download.

    Raises:
        ValueError: there is no such recipe.
    """
    recipes = load_recipes(package)
    if name not in recipes:
        raise ValueError(f"no recipe {name!r}; recipes: {', '.join(recipes)}")
    config, _ = recipes[name]
    found = [config.weights, *(source.transforms.tokenizer for source in config.data.sources)]
    return [address for address in dict.fromkeys(found) if "://" in address]


def parse(package: ModuleType, args: Sequence[str] | None = None) -> TrainConfig:
    """Returns the config a command line asks for; prints help or a refusal and exits where it asks for none."""
    args = list(sys.argv[1:] if args is None else args)
    recipes = load_recipes(package)
    args = recipe_first(args, list(recipes))
    subcommands = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (config, _) in recipes.items()},
        {name: summary for name, (_, summary) in recipes.items()},
    )
    return tyro.cli(subcommands, args=args, config=(tyro.conf.CascadeSubcommandArgs,))


def recipe_first(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the command line with its recipe in front, as the parser wants it: flags may stand on either side.

    Exits with a suggestion if the command line starts with a word that is no recipe.
    """
    if not args or args[0] in names:
        return list(args)
    if args[0].startswith("-"):
        places = [i for i, arg in enumerate(args) if arg in names]
        if len(places) != 1:  # none, or one of them is a flag's value: which one, only the parser knows
            return list(args)
        return [args[places[0]], *args[: places[0]], *args[places[0] + 1 :]]
    close = difflib.get_close_matches(args[0], names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    sys.stderr.write(f"error: no recipe {args[0]!r} in configs/.{hint} Recipes: {', '.join(names)}\n")
    sys.exit(2)
