"""Ways to lay out a converted model: openpi's, which is served here as well, and LeRobot's."""

import pathlib
from collections.abc import Mapping
from typing import Literal, Protocol

from openpi_b1k.conversion import directory, lerobot
from openpi_b1k.conversion.source import Source

LayoutName = Literal["openpi", "lerobot"]


class Layout(Protocol):
    """Names of the tensors, and the files beside them."""

    @property
    def prefix(self) -> str:
        """Of every key in the file."""
        ...

    @property
    def copies(self) -> Mapping[str, str]:
        """Openpi's key -> a second one under which the file holds the same tensor."""
        ...

    def require_possible(self, source: Source) -> None:
        """Raises ValueError if the layout cannot hold the model."""
        ...

    def write(self, source: Source, dtype: str, target: pathlib.Path) -> None:
        """Writes what lies beside model.safetensors into the directory `target`."""
        ...


class Openpi:
    """The tensors of openpi's PyTorch models, beside the files of a checkpoint."""

    prefix = ""
    copies: Mapping[str, str] = {}

    def require_possible(self, source: Source) -> None:
        """Accepts every model."""

    def write(self, source: Source, dtype: str, target: pathlib.Path) -> None:
        """Writes config, info, prompts, norm stats and tokenizer under the names they have in a checkpoint."""
        directory.write_files(target, source.files())


LAYOUTS: dict[LayoutName, Layout] = {"openpi": Openpi(), "lerobot": lerobot.Lerobot()}


def names(layout: Layout, key: str) -> list[str]:
    """Returns the keys under which a file of this layout holds openpi's tensor `key`."""
    keys = [key, layout.copies[key]] if key in layout.copies else [key]
    return [layout.prefix + one for one in keys]
