"""Parts of a list of work, so that the jobs of a Slurm array share it."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 0."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(
                f"a shard is I/N with I in [0, N), such as 0/8 to 7/8; got {self.number}/{self.count}: is the Slurm "
                "array counted from 0?"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, items: Sequence[T]) -> list[T]:
        """Returns every `count`-th item, from item `number` on: neighbours, often of like size, are spread."""
        return list(items[self.number :: self.count])


def parse_shard(text: str) -> Shard:
    """Returns the shard of a text such as 3/64.

    Raises:
        ValueError: it is not of that form, or its number is not below its count.
    """
    number, separator, count = text.partition("/")
    if not (separator and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"a shard is I/N, such as 0/8; got {text!r}")
    return Shard(int(number), int(count))
