"""All checks of one checkpoint on one data set."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.data import TransformConfig
from openpi_b1k.config.train import TrainConfig
from openpi_b1k.data import norm_stats
from openpi_b1k.evaluation.doctor import image_path, ranges, records
from openpi_b1k.evaluation.doctor.diagnosis import Diagnosis, diagnose
from openpi_b1k.evaluation.doctor.findings import Finding, Report
from openpi_b1k.evaluation.doctor.reading import DELTA_FIELDS, Alternatives, as_served
from openpi_b1k.evaluation.doctor.replay import Patient, Replay
from openpi_b1k.evaluation.open_loop.choice import DataChoice
from openpi_b1k.evaluation.open_loop.samples import ChosenFrames, choose_frames
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.normalize import NormStats, Scaling, scaling

logger = logging.getLogger(__name__)

SAME = 0.05
"""Statistics are taken for the same if they scale alike: entries differ by less than this part of the range."""
DEAF = 0.02
"""Part of the error that other tasks' prompts must add, or the policy is said not to listen."""
UNLEARNED = "unlearned"

Loader = Callable[[pathlib.Path], Patient]


def examine(checkpoint: pathlib.Path, choice: DataChoice, count: int, load: Loader) -> Report:
    """Returns what is wrong with a checkpoint on a data set.

    Args:
        checkpoint: the directory.
        choice: which demonstrations.
        count: of frames, spread evenly over episodes.
        load: makes the policy of the directory; is called once the data are there.

    Raises:
        FileNotFoundError: checkpoint or data are not there.
        ValueError: they do not fit together, or a frame cannot be read.
    """
    config, info = contents.read_config(checkpoint), contents.read_info(checkpoint)
    frames = choose_frames(config, info, choice, count)
    unfit = records.chunk_length(checkpoint)
    if unfit is not None:
        facts = (str(checkpoint), str(frames.index.root), len(frames.numbers), len(np.unique(frames.rows)))
        return Report(*facts, np.nan, np.nan, (unfit, *records.check(checkpoint)), (), frames.notes)
    return report(checkpoint, frames, load(checkpoint))


def report(checkpoint: pathlib.Path, frames: ChosenFrames, patient: Patient) -> Report:
    """Returns what is wrong with a policy, given the frames.

    Raises:
        ValueError: a frame cannot be read, or the policy gives no number.
    """
    policy, config = patient.policy, patient.policy.config
    own = functools.cache(functools.partial(own_statistics, frames, config))
    replay = Replay(patient, frames, lambda reading: own(_counted(reading.transforms)))
    transforms, given = config.data.transforms, patient.assets.norm_stats
    own_given = replay.statistics(dataclasses.replace(as_served(config), statistics="data"))
    told = _prompt_lines(replay)
    alternatives = Alternatives(
        config,
        num_prompts=len(set(replay.served_prompts().values())),
        differs_recorded=bool(told),
        differs_statistics=difference(given, own_given, transforms) > 0,
    )
    diagnosis = diagnose(replay, alternatives)
    measured = ranges.measure(frames, policy.robot, transforms, given)
    findings = [*_named(diagnosis, given, own, transforms)]
    for finding in (*records.check(checkpoint), *_told(told), *ranges.check(measured, transforms)):
        findings = _joined(findings, finding)
    findings += image_path.check(policy, frames)
    findings.sort(key=lambda finding: finding.cause == UNLEARNED)  # what says why comes first
    notes = [*frames.notes, *records.notes(checkpoint), *_notes(diagnosis), *_range_notes(measured)]
    return Report(
        checkpoint=str(checkpoint),
        data=str(frames.index.root),
        num_frames=len(frames.numbers),
        num_episodes=len(np.unique(frames.rows)),
        error=diagnosis.error,
        mean_action_error=replay.mean_action_error,
        findings=tuple(findings),
        tried=tuple((one.change.cause, one.change.text, one.gain) for one in diagnosis.tried),
        notes=tuple(notes),
    )


def own_statistics(frames: ChosenFrames, config: TrainConfig, transforms: TransformConfig) -> NormStats:
    """Returns the statistics of the chosen split of the data under some transforms, computed once and kept."""
    robot = r1pro(transforms.state_layout)
    source = norm_stats.StatsSource(frames.index, frames.dataset.columns, transforms, robot)
    return norm_stats.load_or_compute(source, config.model.action_horizon)[0]


def difference(one: NormStats, other: NormStats, transforms: TransformConfig) -> float:
    """Returns how differently two sets of statistics scale: the mean over entries, in parts of the normalised range."""
    robot = r1pro(transforms.state_layout)
    one, other = one.for_robot(robot), other.for_robot(robot)
    apart = [
        _apart(scaling(a, transforms.normalization), scaling(b, transforms.normalization))
        for a, b in ((one.state, other.state), (one.actions, other.actions))
    ]
    return float(np.concatenate([values.ravel() for values in apart]).mean())


def _apart(one: Scaling, other: Scaling) -> np.ndarray:
    """Returns where the ends of one's normalised range lie in the other's, as a distance: per entry at most 1."""
    ends = [other.apply(one.invert(np.array(end))) - end for end in (-1.0, 1.0)]
    return np.minimum(np.mean(np.abs(ends), axis=0) / 2, 1.0)


def _counted(transforms: TransformConfig) -> TransformConfig:
    """Returns the transforms as far as statistics depend on them, so that they are computed once."""
    plain = TransformConfig(tokenizer=transforms.tokenizer)
    return dataclasses.replace(
        plain,
        state_layout=transforms.state_layout,
        delta_fields=transforms.delta_fields,
        per_step_norm=transforms.per_step_norm,
    )


def _named(
    diagnosis: Diagnosis, given: NormStats, own: Callable[[TransformConfig], NormStats], transforms: TransformConfig
) -> list[Finding]:
    """Returns the findings, with statistics told apart: those of other data, or of these under an older config."""
    return [
        _stale(finding, given, own, transforms) if finding.cause == "statistics" else finding
        for finding in diagnosis.findings
    ]


def _stale(
    finding: Finding, given: NormStats, own: Callable[[TransformConfig], NormStats], transforms: TransformConfig
) -> Finding:
    for fields in DELTA_FIELDS:
        older = dataclasses.replace(_counted(transforms), delta_fields=fields)
        if set(fields) != set(transforms.delta_fields) and difference(given, own(older), transforms) < SAME:
            line = f"the file has the statistics of these data with delta_fields {' '.join(fields) or 'none'}"
            return Finding("stale_statistics", (*finding.evidence, line))
    return finding


def _prompt_lines(replay: Replay) -> list[str]:
    recorded = {task: set(texts) for task, texts in replay.frames.index.prompts_by_task().items()}
    return records.prompts(replay.patient.policy.config, dict(replay.served_prompts()), recorded)


def _told(lines: list[str]) -> list[Finding]:
    return [Finding("prompts", tuple(lines))] if lines else []


def _joined(findings: list[Finding], more: Finding) -> list[Finding]:
    """Returns the findings with the evidence of one more, which may be of a cause that is among them."""
    same = {more.cause, "stale_statistics"} if more.cause == "statistics" else {more.cause}
    for place, finding in enumerate(findings):
        if finding.cause in same:
            longer = dataclasses.replace(finding, evidence=(*finding.evidence, *more.evidence))
            return [*findings[:place], longer, *findings[place + 1 :]]
    return [*findings, more]


def _notes(diagnosis: Diagnosis) -> list[str]:
    other = [one for one in diagnosis.tried if one.change.reading.rotation and one.change.cause == "prompts"]
    if other and max(one.after for one in other) < (1 + DEAF) * diagnosis.error:
        return ["with other tasks' prompts the error stays the same: the policy does not listen to its prompt"]
    return []


def _range_notes(measured: list[ranges.FieldRange]) -> list[str]:
    worst = max(measured, key=lambda field: field.outside)
    return [f"normalised ranges, the worst field: {worst}"]
