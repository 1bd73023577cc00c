"""What happened to every array of a checkpoint and to every parameter of a model: loaded, initialised or skipped."""

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Match:
    """A rule and how many stored arrays it named."""

    count: int
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The accounts of one reading of weights."""

    where: str
    num_loaded: int
    """Parameters of the model that were read."""
    matches: tuple[Match, ...]
    initialised: tuple[str, ...] = ()
    """Parameters that are not stored and start from random numbers."""
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Stored arrays that are not used -> the reason."""

    def __str__(self) -> str:
        """Returns the table as it is logged."""
        lines = [f"weights: {self.num_loaded} arrays of {self.where}, each by one rule:"]
        lines += [f"  {match.count} x {match.source} -> {match.target}" for match in self.matches]
        lines += _table("initialised with random numbers", self.initialised)
        lines += _table("skipped", (f"{name}: {reason}" for name, reason in self.skipped.items()))
        return "\n".join(lines)


def _table(title: str, entries: Iterable[str]) -> list[str]:
    entries = list(entries)
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries)]
