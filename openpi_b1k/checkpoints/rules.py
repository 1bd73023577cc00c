"""Renaming the leaves of a tree by a table: each key matches exactly one rule, each target is filled once."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Leaf = TypeVar("Leaf")
Tree = dict[str, Any]  # Any: a nested dict with leaves of any type


@dataclasses.dataclass(frozen=True)
class Rule:
    """Source and target name of one leaf, or of several: `{word}` stands for one part of the path, the same in both."""

    source: str
    target: str

    def __post_init__(self) -> None:
        if sorted(_words(self.source)) != sorted(_words(self.target)):
            raise ValueError(f"{self.source!r} and {self.target!r} must hold the same {{words}}, each once")

    def inverse(self) -> "Rule":
        """Returns the rule that undoes this one."""
        return Rule(self.target, self.source)

    def apply(self, key: str) -> str | None:
        """Returns the new name of `key`, or None if the rule does not match it."""
        found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.source)), key)
        return None if found is None else self.target.format(**found.groupdict())


def _words(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def rename(leaves: Mapping[str, Leaf], rules: Sequence[Rule]) -> dict[str, Leaf]:
    """Returns the same leaves under the names the rules give them.

    Raises:
        ValueError: a key matches no rule or several, or two keys get the same name.
    """
    renamed: dict[str, Leaf] = {}
    sources: dict[str, str] = {}
    for key, leaf in leaves.items():
        matches = [(rule, target) for rule in rules if (target := rule.apply(key)) is not None]
        if not matches:
            raise ValueError(f"no rule for {key!r}; nearest rules: {nearest(key, [rule.source for rule in rules])}")
        if len(matches) > 1:
            raise ValueError(
                f"{key!r} matches {len(matches)} rules, expected exactly one: {[rule.source for rule, _ in matches]}"
            )
        target = matches[0][1]
        if target in renamed:
            raise ValueError(f"{target!r} is filled twice, by {sources[target]!r} and {key!r}")
        renamed[target], sources[target] = leaf, key
    return renamed


def require_same_keys(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Checks that two sets of leaf names are equal.

    Raises:
        ValueError: a name is missing or is too many; the message gives the nearest name of the other set.
    """
    found, expected = set(found), set(expected)
    problems = [f"missing {key!r} (nearest: {nearest(key, found - expected)})" for key in sorted(expected - found)]
    problems += [f"unknown {key!r} (nearest: {nearest(key, expected - found)})" for key in sorted(found - expected)]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{where} does not hold the expected parameters: {shown}")


def nearest(key: str, names: Iterable[str]) -> str:
    """Returns up to three of `names` most like `key`, for an error message."""
    close = difflib.get_close_matches(key, list(names), n=3, cutoff=0.3)
    return ", ".join(repr(name) for name in close) or "none"


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns {"a/b/c": leaf} for every leaf of a nested dict."""
    flat: dict[str, Any] = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(child, f"{path}/") if isinstance(child, dict) else {path: child}
    return flat


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """Returns the nested dict that `flatten` gives `leaves` for."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
