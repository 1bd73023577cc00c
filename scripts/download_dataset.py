"""Fetches part of a published data set: `uv run scripts/download_dataset.py --tasks turning_on_radio`.

The size is shown and asked about first. Run again, it goes on where it was cut off.
"""

import dataclasses
import pathlib
import sys

import tyro

from openpi_b1k.config.data import CAMERAS, Generation, Modality


@dataclasses.dataclass(frozen=True)
class Args:
    """Fetches part of a published data set from the Hugging Face Hub; meta files and annotations always come along."""

    generation: Generation = "2025"
    tasks: tuple[str, ...] = ()
    """Task names; empty means all of them."""
    cameras: tuple[str, ...] = CAMERAS
    modalities: tuple[Modality, ...] = ("rgb",)
    """Fetched of every chosen camera. Training reads depth and segmentation of the head camera alone."""
    root: pathlib.Path | None = None
    """Where to; default: $OPENPI_B1K_DATA, else datasets/<generation>-challenge-demos, where training looks."""
    repository: str | None = None
    """Another data set in a challenge's layout."""
    revision: str | None = None
    """Branch, tag or commit of it."""
    yes: bool = False
    """Do not ask."""


def run(args: Args) -> int:
    """Shows the size, asks, fetches and returns the exit status."""
    import huggingface_hub  # noqa: PLC0415  # so that --help answers at once

    from openpi_b1k import paths  # noqa: PLC0415
    from openpi_b1k.curation import download  # noqa: PLC0415

    repository, revision = download.REPOSITORIES[args.generation]
    source = (args.repository or repository, args.revision or ("main" if args.repository else revision))
    root = args.root or paths.default_data_root(args.generation)
    hub = huggingface_hub.HfApi()
    try:
        chosen = download.plan(hub, source, root, args.tasks, args.cameras, args.modalities)
        print(chosen.summary())
        if not args.yes and input("Fetch it? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
        download.fetch(hub, chosen)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Args)))
