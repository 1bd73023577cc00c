"""Downloads weights and tokenizers into the cache, checks them, moves them to machines without a network.

    uv run scripts/fetch_weights.py --recipe pi05_b1k          what a recipe starts from
    uv run scripts/fetch_weights.py hf://sunshk/openpi_comet/pi05-b1kpt50-cs32 --export weights.tar
    uv run scripts/fetch_weights.py --import weights.tar       on a machine that reaches no server
A download that breaks off goes on with the same command. The cache is $OPENPI_B1K_CACHE, else ~/.cache/openpi_b1k.
"""

import pathlib
import sys
from typing import Annotated

import tyro

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ is no part of the package

import configs
from openpi_b1k import paths
from openpi_b1k.config import cli
from openpi_b1k.downloads import moving, record


def run(
    addresses: tyro.conf.Positional[tuple[str, ...]] = (),
    recipe: str | None = None,
    check: bool = False,
    export: pathlib.Path | None = None,
    import_: Annotated[pathlib.Path | None, tyro.conf.arg(name="import")] = None,
) -> int:
    """Returns the exit status: 1 if a file is not as it arrived.

    Args:
        addresses: gs://, hf://, s3:// or https:// of weights or of a tokenizer.
        recipe: fetch the weights and the tokenizers of this recipe.
        check: list all downloads, and compare every file with the SHA-256 it arrived with.
        export: write what was asked for, else all downloads, into a tar file.
        import_: take the downloads of such a file into the cache.
    """
    cache, wanted = paths.cache_dir(), [*addresses, *(cli.addresses(configs, recipe) if recipe else ())]
    if not (wanted or check or export or import_):
        raise ValueError("nothing to do: give an address, --recipe, --check, --export or --import")
    for address, outcome in moving.import_tar(import_, cache) if import_ else ():
        print(f"{address}: {outcome}")
    places = [paths.fetch(address) for address in wanted]
    print("\n".join(f"{address}: at {place}" for address, place in zip(wanted, places, strict=True)))
    if export is not None:
        moving.export([entry for entry in record.entries(cache) if not wanted or entry.path in places], cache, export)
        print(f"on the other machine: uv run scripts/fetch_weights.py --import {export.name}")
    states = [record.state(entry) for entry in record.entries(cache)] if check else []
    print("\n".join(map(str, states)))
    return 0 if all(state.is_good for state in states) else 1


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(run, description=__doc__))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
