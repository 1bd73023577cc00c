"""Actions relative to the state, by field name: state and action may be ordered differently."""

import dataclasses

from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.base import Sample


@dataclasses.dataclass(frozen=True)
class DeltaActions:
    """Makes named fields of `actions` [..., ah, ad] relative to `state` [..., s], that of the chunk's first step."""

    names: tuple[str, ...]
    robot: Robot

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with relative actions; one without actions as it is."""
        if "actions" not in sample or not self.names:
            return sample
        actions = sample["actions"].copy()
        for name in self.names:
            actions[..., self.robot.action.slice(name)] -= sample["state"][..., None, self.robot.state.slice(name)]
        return sample | {"actions": actions}


@dataclasses.dataclass(frozen=True)
class AbsoluteActions:
    """Inverse of `DeltaActions`: adds the same `state` again."""

    names: tuple[str, ...]
    robot: Robot

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with absolute actions."""
        actions = sample["actions"].copy()
        for name in self.names:
            actions[..., self.robot.action.slice(name)] += sample["state"][..., None, self.robot.state.slice(name)]
        return sample | {"actions": actions}
