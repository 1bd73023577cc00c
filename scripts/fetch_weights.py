"""Gets weights and tokenizers into the cache ($OPENPI_B1K_CACHE, else ~/.cache/openpi_b1k) and to other machines.

A download that breaks off goes on with the same command. Addresses are such as hf://sunshk/openpi_comet/pi05-b1kpt50-cs32
    uv run scripts/fetch_weights.py --recipe pi05_b1k --export weights.tar
    uv run scripts/fetch_weights.py --import weights.tar       on a machine that reaches no server
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
    list_: Annotated[bool, tyro.conf.arg(name="list")] = False,
    export: pathlib.Path | None = None,
    import_: Annotated[pathlib.Path | None, tyro.conf.arg(name="import")] = None,
) -> int:
    """Returns the exit status: 1 if a file is not as it arrived.

    Args:
        addresses: gs://, hf://, s3:// or https:// of weights or of a tokenizer.
        recipe: fetch the weights and the tokenizers of this recipe.
        check: compare every file of all downloads with the SHA-256 it arrived with.
        list_: list all downloads, without reading them.
        export: write what was asked for, else all downloads, into a tar file for --import elsewhere.
        import_: take the downloads of such a file into the cache; damaged ones that are there are replaced.
    """
    cache, wanted = paths.cache_dir(), [*addresses, *(cli.addresses(configs, recipe) if recipe else ())]
    if not (wanted or check or list_ or export or import_):
        raise ValueError("nothing to do: give an address, --recipe, --check, --list, --export or --import")
    for address, outcome in moving.import_tar(import_, cache) if import_ else ():
        print(f"{address}: {outcome}")
    places = [paths.fetch(address) for address in wanted]
    sys.stdout.writelines(f"{address}: at {place}\n" for address, place in zip(wanted, places, strict=True))
    if export is not None:
        moving.export([entry for entry in record.entries(cache) if not wanted or entry.path in places], cache, export)
    states = [record.state(entry) for entry in record.entries(cache)] if check else []
    sys.stdout.writelines(f"{line}\n" for line in [*(record.entries(cache) if list_ else ()), *states])
    return 0 if all(state.is_good for state in states) else 1


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(run, description=__doc__))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
