"""A vector whose entries have names and units. Every index into proprio, state and action comes from here."""

import dataclasses
import functools
import itertools

from openpi_b1k.config.data import Modality


@dataclasses.dataclass(frozen=True)
class Field:
    """Consecutive entries of a vector that belong together."""

    name: str
    size: int
    unit: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """Fields in the order in which a vector holds them."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"a layout must name each field once; got {', '.join(self.names)}")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Field names in order."""
        return tuple(field.name for field in self.fields)

    @functools.cached_property
    def size(self) -> int:
        """Entries in all."""
        return sum(field.size for field in self.fields)

    @functools.cached_property
    def _slices(self) -> dict[str, slice]:
        ends = itertools.accumulate(field.size for field in self.fields)
        return {field.name: slice(end - field.size, end) for field, end in zip(self.fields, ends, strict=True)}

    def slice(self, name: str) -> slice:
        """Returns where the field `name` lies.

        Raises:
            KeyError: there is no such field.
        """
        if name not in self._slices:
            raise KeyError(f"no field {name!r}; known fields: {', '.join(self.names)}")
        return self._slices[name]


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera of a robot at its native size."""

    name: str
    simulator_name: str
    """Its prefix in the evaluator's observation, before `::rgb`."""
    dataset_keys: tuple[str, ...]
    """Its RGB video key in the data of 2025, of 2026 and of plain LeRobot; a data set has one of them."""
    size: int
    """Height and width in pixels; images are square."""
    focal_length: float
    """In pixels at `size`; the principal point is the centre. Scales with the image."""
    depth_keys: tuple[str, ...] = ()
    """Its depth video key in the data of 2025 and of 2026."""
    segmentation_keys: tuple[str, ...] = ()
    """Its segmentation video key in the data of 2025; those of 2026 have none."""

    def video_keys(self, modality: Modality) -> tuple[str, ...]:
        """Returns the names the video may have in a data set."""
        return {"rgb": self.dataset_keys, "depth": self.depth_keys, "segmentation": self.segmentation_keys}[modality]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a state field comes from: a proprio field, copied or summed into one number."""

    proprio_field: str
    is_summed: bool = False


@dataclasses.dataclass(frozen=True)
class Robot:
    """An embodiment: its vectors, cameras and limits."""

    name: str
    action: Layout
    state: Layout
    """The order of the model's state, a permutation of the action's fields or not."""
    proprios: tuple[Layout, ...]
    """Raw vectors the robot is known to send; told apart by size."""
    sources: tuple[tuple[str, Source], ...]
    """(state field, where it comes from)."""
    cameras: tuple[Camera, ...]
    action_limits: tuple[tuple[float, float], ...]
    """(lower, upper) of each action entry, in the action's units."""

    def proprio(self, size: int) -> Layout:
        """Returns the layout of a proprio vector of `size` entries.

        Raises:
            ValueError: no generation of this robot sends that many.
        """
        for layout in self.proprios:
            if layout.size == size:
                return layout
        known = " or ".join(str(layout.size) for layout in self.proprios)
        raise ValueError(f"proprio of {self.name} has {known} entries; got {size}")

    def camera(self, name: str) -> Camera:
        """Returns the camera called `name`.

        Raises:
            KeyError: there is no such camera.
        """
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise KeyError(f"no camera {name!r}; known cameras: {', '.join(camera.name for camera in self.cameras)}")
