"""What an audit may find, how bad that is, and how findings become text and JSON."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
NUM_EXAMPLES = 3
WIDTH = 150

KINDS: dict[str, tuple[Severity, str]] = {
    "missing file": ("error", "a file that the meta files name is not there"),
    "corrupt file": ("error", "a file cannot be read"),
    "length mismatch": ("error", "rows, frames and meta files disagree about how long an episode is"),
    "bad timestamps": ("error", "rows are not one frame apart, so rows and frames do not belong together"),
    "wrong task": ("error", "a row names another task than the meta files"),
    "not finite": ("error", "a value the model sees is NaN or infinite"),
    "far outside limits": (
        "error",
        "beyond the robot's limits by more than a tenth of their range: another unit or order",
    ),
    "gripper sign": ("error", "the gripper closes when told to open"),
    "other image size": ("error", "frames are not of the size that meta/info.json says"),
    "no prompt": ("error", "a policy would learn to act without being told what"),
    "wrong revision": ("error", "the copy is older than the release's corrections"),
    "broken annotation": ("error", "an annotation file cannot be read, which trimming and prompts of level 1 need"),
    "outside limits": ("warning", "beyond the robot's limits by less than a tenth of their range"),
    "constant entry": ("warning", "an entry of state or action never changes; normalisation leaves its spread alone"),
    "motionless": ("warning", "an episode in which nothing moves"),
    "longer video": ("warning", "a video has frames beyond its episodes' rows"),
    "no annotation": ("warning", "an episode that prompts of level 1 cannot be given for"),
    "not checked": ("warning", "something could not be checked"),
    "awkward annotations": ("note", "annotations that are read by a rule"),
    "idle ends": ("note", "frames before the first and after the last motion; training leaves them out by default"),
    "unused value": ("note", "NaN or infinite where the model does not look"),
    "not downloaded": ("note", "tasks or videos of which nothing is there; not audited"),
}
"""Kind -> (severity, what it means). An error makes training wrong, or stops it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """One of KINDS."""
    where: str
    """A file relative to the root, or a part of the data set."""
    detail: str
    episode: int | None = None
    """The data set's number."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no kind of finding {self.kind!r}; known kinds: {', '.join(KINDS)}")

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind][0]

    @property
    def text(self) -> str:
        """One line."""
        episode = "" if self.episode is None else f" episode {self.episode}"
        return f"{self.where}{episode}: {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"severity": self.severity, **dataclasses.asdict(self)}


def from_json(value: dict[str, Any]) -> Finding:
    """Returns a finding that `to_json` wrote."""
    return Finding(value["kind"], value["where"], value["detail"], value["episode"])


def grouped(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Returns {kind: findings}, the worst kinds first."""
    groups = collections.defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    return {kind: groups[kind] for kind in KINDS if kind in groups}


def has_errors(findings: Sequence[Finding]) -> bool:
    """Returns whether training on these data would be wrong."""
    return any(finding.severity == "error" for finding in findings)


def table(findings: Sequence[Finding]) -> str:
    """Returns the findings as text: a line for each kind with its count, some of them below it, and the verdict."""
    if not findings:
        return "nothing found"
    lines = [f"{'':9}{'kind':22}{'count':>7}  meaning"]
    for kind, group in grouped(findings).items():
        severity, meaning = KINDS[kind]
        lines.append(f"{severity:9}{kind:22}{len(group):7}  {meaning}")
        for finding in group[:NUM_EXAMPLES]:
            text = finding.text if len(finding.text) <= WIDTH else f"{finding.text[: WIDTH - 3]}..."
            lines.append(f"{'':11}{text}")
        if len(group) > NUM_EXAMPLES:
            lines.append(f"{'':11}and {len(group) - NUM_EXAMPLES} more: see --json")
    num_errors = sum(finding.severity == "error" for finding in findings)
    lines.append(f"{num_errors} errors: training on these data would be wrong" if num_errors else "no errors")
    return "\n".join(lines)
