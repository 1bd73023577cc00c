"""How far sampled action chunks are from demonstrated ones: per field in its own unit, and per step of the chunk."""

import dataclasses

import numpy as np

from openpi_b1k.robots.layout import Layout

STEPS = (1, 8, 32)
"""Steps of a chunk, counted from 1, whose error has a name of its own; the last step has one as well."""


def is_gripper(name: str) -> bool:
    """Returns whether a field of the action is an open/close signal, of which only the sign is executed."""
    return name.endswith("gripper")


def step_errors(layout: Layout, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns an error per chunk, field and step, float64 [n, f, ah].

    It is the mean absolute difference of the field's entries, in the field's unit. A gripper's is 1 where one chunk
    opens it (a value above 0) and the other closes it, else 0; NaN where the prediction is none.

    Args:
        layout: of the actions, `f` fields.
        true: demonstrated actions [n, ah, a] in the layout's units.
        predicted: actions [n, ah, a] in the same units.

    Raises:
        ValueError: the chunks differ in shape, or are not of the layout's size.
    """
    if true.shape != predicted.shape or true.ndim != 3 or true.shape[-1] != layout.size:
        raise ValueError(
            f"true and predicted actions must both be [n, action horizon, {layout.size}]; got {list(true.shape)} and "
            f"{list(predicted.shape)}"
        )
    true, predicted = true.astype(np.float64), predicted.astype(np.float64)
    errors = []
    for name in layout.names:
        one, other = true[..., layout.slice(name)], predicted[..., layout.slice(name)]
        if is_gripper(name):
            difference = np.where(np.isfinite(other), (one > 0) != (other > 0), np.nan)
        else:
            difference = np.abs(one - other)
        errors.append(difference.mean(axis=-1))
    return np.stack(errors, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorSums:
    """Errors summed over chunks: those of several parts can be added, and their means are the means of the whole."""

    sums: np.ndarray
    """float64 [f, ah], by field and step."""
    counts: np.ndarray
    """float64 [ah]: chunks that have this step."""

    @classmethod
    def of(cls, errors: np.ndarray, mask: np.ndarray) -> "ErrorSums":
        """Returns the sums of `errors` [n, f, ah] over the steps that count, which `mask` [n, ah] says."""
        return cls(np.where(mask[:, None], errors, 0.0).sum(axis=0), mask.sum(axis=0, dtype=np.float64))

    def by_step(self) -> np.ndarray:
        """Returns the mean error of each field at each step, float64 [f, ah]; NaN at steps that no chunk has."""
        means = np.full(self.sums.shape, np.nan)
        return np.divide(self.sums, self.counts, out=means, where=np.broadcast_to(self.counts > 0, means.shape))

    def named(self, layout: Layout) -> dict[str, float]:
        """Returns the mean error of each field over all steps and chunks, and at some steps, by name.

        `right_arm` and `right_arm/step_8` are mean absolute errors in the field's unit, `right_gripper_accuracy` is the
        share of steps with the demonstrated decision. Steps that no chunk has are left out.

        Raises:
            ValueError: nothing was summed.
        """
        if not self.counts.any():
            raise ValueError("no step of any chunk counts, so there is no mean error")
        by_step, horizon = self.by_step(), len(self.counts)
        steps = [step for step in sorted({*STEPS, horizon}) if step <= horizon and self.counts[step - 1]]
        found = {}
        for row, name in enumerate(layout.names):
            mean = float(self.sums[row].sum() / self.counts.sum())
            if is_gripper(name):
                found[f"{name}_accuracy"] = 1.0 - mean
                continue
            found[name] = mean
            found |= {f"{name}/step_{step}": float(by_step[row, step - 1]) for step in steps}
        return found
