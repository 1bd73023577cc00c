"""Between what BEHAVIOR-1K records or sends and the fields the other transforms work on."""

import dataclasses

import numpy as np

from openpi_b1k.config.data import EXTRA_CAMERA, Modality
from openpi_b1k.robots.layout import Robot
from openpi_b1k.transforms.base import Sample


def extract_state(robot: Robot, proprio: np.ndarray) -> np.ndarray:
    """Returns the state [..., s] held in raw proprio vectors [..., p], in proprio's dtype; units as in `robot.state`.

    Raises:
        ValueError: no generation of the robot sends vectors of that size.
    """
    layout = robot.proprio(proprio.shape[-1])
    state = np.empty((*proprio.shape[:-1], robot.state.size), proprio.dtype)
    for name, source in robot.sources:
        values = proprio[..., layout.slice(source.proprio_field)]
        state[..., robot.state.slice(name)] = values.sum(-1, keepdims=True) if source.is_summed else values
    return state


@dataclasses.dataclass(frozen=True)
class B1kInputs:
    """Raw sample -> `state`, `images`, `image_masks`, `prompt`, and `actions` and `is_pad` where the sample has them.

    `raw_state` is the state as it is now, for the way back; nothing after this transform changes it. With those
    modalities also `depth` float32 [h, w] in m and `labels`, uint8 [h, w] or, where nobody knows the current skill's
    objects, None.

    A sample with `is_continuation` is served, and its actions are those of the last chunk that the next one continues.
    """

    robot: Robot
    cameras: tuple[str, ...]
    modalities: tuple[Modality, ...] = ("rgb",)

    def __call__(self, sample: Sample) -> Sample:
        """Returns the fields the model's input is made of, and no others.

        Raises:
            KeyError: a camera, its depth, its segmentation (in training), the prompt or proprio is missing.
            ValueError: something has the wrong size or type, or is not finite.
        """
        missing = [name for name in ("proprio", "images", "prompt") if name not in sample]
        if missing:
            raise KeyError(f"a sample needs proprio, images and prompt; {', '.join(missing)} missing{_where(sample)}")
        state = extract_state(self.robot, np.asarray(sample["proprio"], np.float32))
        self._check_finite("state", state, self.robot.state.names, sample)
        fields = {
            "state": state,
            "raw_state": state,
            "images": {name: self._image(sample, name) for name in self.cameras},
            "image_masks": dict.fromkeys(self.cameras, np.True_),
            "prompt": sample["prompt"],
        }
        if "depth" in self.modalities:
            fields["depth"] = self._extra(sample, "depth")
        if "segmentation" in self.modalities:
            is_served = "actions" not in sample or "is_continuation" in sample
            has_labels = "segmentation" in sample or not is_served
            fields["labels"] = self._extra(sample, "segmentation") if has_labels else None
        if "actions" in sample:
            fields |= {"actions": self._actions(sample), "is_pad": sample["is_pad"]}
        return fields

    def _extra(self, sample: Sample, modality: Modality) -> np.ndarray:
        """Returns what the extra camera shows in a modality other than RGB."""
        if EXTRA_CAMERA not in sample.get(modality, {}):
            raise KeyError(
                f"no {modality} of camera {EXTRA_CAMERA!r}{_where(sample)}, but the model was told to expect it with "
                f"--data.modalities {' '.join(self.modalities)}"
            )
        return sample[modality][EXTRA_CAMERA]

    def _image(self, sample: Sample, camera: str) -> np.ndarray:
        images = sample["images"]
        if camera not in images:
            raise KeyError(
                f"no image of camera {camera!r}{_where(sample)}; there are: {', '.join(images)}; "
                "choose cameras with --data.cameras"
            )
        image = images[camera]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"an image must be uint8 [h, w, 3]; camera {camera!r} gave {image.dtype} {list(image.shape)}"
                f"{_where(sample)}"
            )
        return image

    def _actions(self, sample: Sample) -> np.ndarray:
        actions = np.asarray(sample["actions"], np.float32)
        if actions.ndim != 2 or actions.shape[1] != self.robot.action.size:
            raise ValueError(
                f"actions of {self.robot.name} must be [action horizon, {self.robot.action.size}]; "
                f"got {list(actions.shape)}{_where(sample)}"
            )
        self._check_finite("actions", actions, self.robot.action.names, sample)
        return actions

    def _check_finite(self, what: str, values: np.ndarray, names: tuple[str, ...], sample: Sample) -> None:
        if np.isfinite(values).all():
            return
        layout = self.robot.state if what == "state" else self.robot.action
        bad = [name for name in names if not np.isfinite(values[..., layout.slice(name)]).all()]
        raise ValueError(f"{what} must be finite; {', '.join(bad)} holds NaN or infinity{_where(sample)}")


def _where(sample: Sample) -> str:
    """Returns where a sample comes from, if it says so, for error messages."""
    known = [f"{name} {sample[name]}" for name in ("task", "episode", "frame") if name in sample]
    return f" ({', '.join(known)})" if known else ""


@dataclasses.dataclass(frozen=True)
class B1kStatistics:
    """`B1kInputs` for statistics: any number of samples at once, no images, no prompt."""

    robot: Robot

    def __call__(self, sample: Sample) -> Sample:
        """Returns `state` [..., s], and `actions` [..., ah, a] as they are."""
        return {"state": extract_state(self.robot, sample["proprio"]), "actions": sample["actions"]}


@dataclasses.dataclass(frozen=True)
class B1kOutputs:
    """Model output -> the robot's own entries of `actions`, with the `state` that deltas are relative to."""

    robot: Robot

    def __call__(self, sample: Sample) -> Sample:
        """Returns `actions` [..., ah, action size], still normalised, and `state`, which is not."""
        actions = np.asarray(sample["actions"])
        if actions.shape[-1] < self.robot.action.size:
            raise ValueError(
                f"actions of {self.robot.name} have {self.robot.action.size} entries; "
                f"the model gave {actions.shape[-1]}"
            )
        return {"actions": actions[..., : self.robot.action.size], "state": np.asarray(sample["raw_state"])}
