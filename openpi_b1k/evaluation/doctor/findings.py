"""What can be wrong around a network, what likely caused it, and what to do."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Cause:
    """One kind of fault."""

    title: str
    likely: str
    """How it usually comes about."""
    remedy: str


CAUSES = {
    "cameras": Cause(
        "cameras in another order",
        "the videos of two cameras are exchanged, or their keys are mapped to the wrong camera",
        "look at a frame of each video; correct the data set's video keys, or the simulator's camera names",
    ),
    "colours": Cause(
        "red and blue exchanged",
        "images were written or read as BGR, as OpenCV does, and the network saw RGB",
        "convert with image[..., ::-1] where the images are made, and encode the data again",
    ),
    "state_layout": Cause(
        "state in another order",
        "--data.transforms.state-layout is not the one of training: the grippers stand in other places",
        "set state_layout of the checkpoint's config.json back to the order that training used",
    ),
    "grippers": Cause(
        "gripper commands misunderstood",
        "sign, unit or side of the gripper commands differ between training and these data",
        "a command above 0 opens; bring the data's gripper entries to [-1, 1], left before right",
    ),
    "frames": Cause(
        "images and rows out of step",
        "videos start earlier or later than the rows, or frames were dropped when they were encoded",
        "compare time stamps of videos and rows (scripts/audit_dataset.py), and shift or encode again",
    ),
    "lag": Cause(
        "actions out of step",
        "the action of a row is that of an earlier or later step than in training",
        "find out which action belongs to an observation when rows are written, and shift the column",
    ),
    "prompts": Cause(
        "prompts of other tasks, or other words",
        "assets/prompts.json does not say what training said, or tasks are numbered differently",
        "restore assets/prompts.json, or give the right sentence with --prompt when serving",
    ),
    "statistics": Cause(
        "wrong norm stats",
        "norm_stats.json is of other data, another robot or another recipe",
        "restore the file that training wrote, or train with --norm-stats naming it",
    ),
    "stale_statistics": Cause(
        "stale norm stats",
        "norm_stats.json was computed under an older config of the transforms, and not again after it changed",
        "compute them again (scripts/compute_norm_stats.py), or restore those that training used",
    ),
    "normalization": Cause(
        "another kind of normalisation",
        "the config says quantile where training used z-score, or the other way round",
        "set transforms.normalization of the checkpoint's config.json back",
    ),
    "clip": Cause(
        "normalised values far outside the range are not clipped",
        "--data.transforms.clip-normalized is None, and rare values of the data are large",
        "set transforms.clip_normalized to 5, or what training used, and train again if training had none",
    ),
    "deltas": Cause(
        "absolute and relative actions mixed up",
        "--data.transforms.delta-fields is not the one of training",
        "set transforms.delta_fields of the checkpoint's config.json back to that of training",
    ),
    "horizon": Cause(
        "the chunk is longer than what was trained",
        "model.action_horizon of the config is not that of the network, which guesses beyond its own",
        "set model.action_horizon back, or execute the first steps only (--execution.execution-horizon)",
    ),
    "ranges": Cause(
        "a field mostly outside the normalised range",
        "the norm stats are of data that move in another range",
        "compute norm stats on these data, or look at the field's unit",
    ),
    "image_path": Cause(
        "serving gives the network other inputs than training",
        "images are resized, cut or converted differently on the way from a request",
        "this is a defect of the code or of an added transform: report it with this output",
    ),
    "records": Cause(
        "the checkpoint's files do not belong together",
        "a file of the checkpoint was changed after it was written",
        "restore the checkpoint from a copy",
    ),
    "unlearned": Cause(
        "the policy is hardly better than always giving the mean action",
        "it was trained too little, on other data, or with a fault that no single change here undoes",
        "look at the training's loss (scripts/report.py), and at the tried changes for the largest gain",
    ),
}
"""By the name that `--json` gives. Titles are for people."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault, and the numbers that speak for it."""

    cause: str
    """A key of CAUSES."""
    evidence: tuple[str, ...]

    def text(self) -> str:
        """Returns it as lines."""
        cause = CAUSES[self.cause]
        lines = [f"{cause.title} ({self.cause})", *(f"  evidence: {line}" for line in self.evidence)]
        return "\n".join([*lines, f"  likely cause: {cause.likely}", f"  what to do: {cause.remedy}"])


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found."""

    checkpoint: str
    data: str
    num_frames: int
    num_episodes: int
    error: float
    """Of the policy as it is served, in parts of the actions' spread; NaN where it could not be replayed."""
    mean_action_error: float
    """Of always giving the mean action, in the same unit."""
    findings: tuple[Finding, ...]
    """The best explanation first."""
    tried: tuple[tuple[str, str, float], ...]
    """(cause, change, part of the error it takes away), the best first; negative where it makes things worse."""
    notes: tuple[str, ...]

    def text(self) -> str:
        """Returns it for a terminal."""
        lines = [
            f"{self.checkpoint}: {self.num_frames} frames of {self.num_episodes} episodes at {self.data}",
            f"error {self.error:.3f} of the actions' spread; the mean action has {self.mean_action_error:.3f}",
        ]
        lines += [f"FINDING {number}: {finding.text()}" for number, finding in enumerate(self.findings, 1)]
        lines += [] if self.findings else ["no finding"]
        lines += [f"note: {note}" for note in self.notes]
        best = {cause: (change, gain) for cause, change, gain in reversed(self.tried)}
        lines += (
            ["the best change of each kind that was tried, and the part of the error it takes away:"] if best else []
        )
        lines += [f"  {gain:+6.0%}  {change}" for change, gain in sorted(best.values(), key=lambda one: -one[1])]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns it as JSON text, with an error that is no number as null."""
        content = dataclasses.asdict(self) | {"error": None if self.error != self.error else self.error}
        if self.mean_action_error != self.mean_action_error:
            content["mean_action_error"] = None
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
