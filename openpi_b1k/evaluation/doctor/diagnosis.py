"""Which changes explain a policy's error: a test of each, the best accepted, and again until none explains more."""

import dataclasses

import numpy as np

from openpi_b1k.evaluation.doctor.findings import Finding
from openpi_b1k.evaluation.doctor.reading import Alternatives, Change, Reading, as_served
from openpi_b1k.evaluation.doctor.replay import Replay

LEAST_GAIN = 0.25
"""Part of the error that a change must take away."""
LEAST_SHARE = 0.04
"""The same in parts of the mean action's error: what is small anyway explains no failure."""
NUM_ERRORS = 3.0
"""Standard errors, over episodes, that the gain must be away from 0."""
UNLEARNED = 0.9
"""Part of the mean action's error from which on nothing was learned."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """A change, and what it does to the error."""

    change: Change
    before: float
    after: float
    deviations: float
    """Standard errors, over episodes, of the gain from 0."""

    @property
    def gain(self) -> float:
        """Part of the error that it takes away."""
        return (self.before - self.after) / self.before if self.before else 0.0

    def is_clear(self, mean_action_error: float) -> bool:
        """Returns whether the change explains the error."""
        is_large = self.gain >= LEAST_GAIN and self.before - self.after >= LEAST_SHARE * mean_action_error
        return is_large and self.deviations >= NUM_ERRORS

    def evidence(self) -> str:
        """Returns it as a sentence."""
        return (
            f"with {self.change.text} the error is {self.after:.3f} instead of {self.before:.3f} ({self.gain:.0%} "
            f"less, {self.deviations:.1f} standard errors over episodes)"
        )


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What explains a policy's error."""

    error: float
    """As served."""
    findings: tuple[Finding, ...]
    tried: tuple[Tried, ...]
    """At first, the best first."""
    reading: Reading
    """With all changes that explain something."""


def diagnose(replay: Replay, alternatives: Alternatives) -> Diagnosis:
    """Returns the changes that explain the error, the best first; what explains no more on top of those is left out.

    Raises:
        ValueError: the policy cannot be replayed.
    """
    reading = as_served(replay.patient.policy.config)
    error = float(replay.errors(reading, slice(None)).mean())
    findings: list[Finding] = []
    first: tuple[Tried, ...] = ()
    while True:
        known = {finding.cause for finding in findings}
        changes = [change for change in alternatives.changes(reading) if change.cause not in known]
        tried = sorted((_try(replay, reading, change) for change in changes), key=lambda one: -one.gain)
        first = first or tuple(tried)
        best = next((one for one in tried if one.is_clear(replay.mean_action_error)), None)
        if best is None:
            break
        findings.append(Finding(best.change.cause, (best.evidence(),)))
        reading = best.change.reading
    remaining = _try(replay, reading, Change("", "", reading)).after
    if remaining > UNLEARNED * replay.mean_action_error:
        rest = f"an error of {remaining:.3f}, and the mean action has {replay.mean_action_error:.3f}"
        findings.append(Finding("unlearned", (f"{'what was found leaves' if findings else 'the policy has'} {rest}",)))
    return Diagnosis(error, tuple(findings), first, reading)


def _try(replay: Replay, reading: Reading, change: Change) -> Tried:
    steps = change.reading.steps(replay.patient.policy.config.model.action_horizon)
    before, after = replay.errors(reading, steps), replay.errors(change.reading, steps)
    _, episodes = np.unique(replay.frames.rows, return_inverse=True)
    gains = np.bincount(episodes, before - after) / np.bincount(episodes)
    spread = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    deviations = float(gains.mean() / spread) if spread else float(np.sign(gains.mean()) * NUM_ERRORS)
    return Tried(change, float(before.mean()), float(after.mean()), deviations)
