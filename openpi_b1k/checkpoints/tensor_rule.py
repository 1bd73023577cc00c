"""One of our leaves and the tensors of a PyTorch model that hold it: their keys, and how the axes go."""

import dataclasses
import itertools
import math
import re

import numpy as np

LAYER = "{i}"
"""Stands for the number of a layer in a key."""


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """One leaf of ours and the tensors that hold it."""

    ours: str
    theirs: tuple[str, ...]
    """Keys; several for a leaf whose axis after the layers fuses as many. With `{i}` there is one of each layer."""
    axes: str
    """A letter per axis of one layer's part of the leaf, and how they lie in a tensor: `ndh -> (nh)d`."""

    @property
    def is_stacked(self) -> bool:
        """Whether the leaf holds all layers, on axis 0."""
        return LAYER in self.theirs[0]

    @property
    def is_fused(self) -> bool:
        """Whether the leaf holds several tensors of a layer, on the axis after the layers."""
        return len(self.theirs) > 1

    def pieces(self, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Returns (key, index into the leaf) of every tensor, for a leaf of this shape."""
        layers = [(layer,) for layer in range(shape[0])] if self.is_stacked else [()]
        parts = [(part,) for part in range(len(self.theirs))] if self.is_fused else [()]
        return [
            (key.replace(LAYER, "".join(map(str, layer))), (*layer, *part))
            for layer, (part, key) in itertools.product(layers, zip(parts, self.theirs, strict=True))
        ]

    def part_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of what one tensor holds, with our axes.

        Raises:
            ValueError: a leaf of this shape cannot be this one.
        """
        part = shape[self.is_stacked + self.is_fused :]
        fused = shape[self.is_stacked] if self.is_fused and len(shape) > self.is_stacked else len(self.theirs)
        if len(part) != len(self._ours) or fused != len(self.theirs):
            raise ValueError(f"{self.ours} cannot be of shape {shape}: its axes are {self.axes}")
        return part

    def tensor_shape(self, part: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a tensor that holds a part of the given shape."""
        sizes = dict(zip(self._ours, part, strict=True))
        return tuple(math.prod(sizes[letter] for letter in group) for group in self._groups)

    def part_of(self, tensor: tuple[int, ...], like: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape, with our axes, of what a tensor of a shape holds.

        Args:
            tensor: its shape.
            like: such a shape with our axes, of which the tensor's may be another size. It tells how an axis that two
                of ours are folded into comes apart; where it does not fit, the first of the two keeps its size.

        Raises:
            ValueError: the tensor cannot be one of this rule.
        """
        sizes, groups = dict(zip(self._ours, like, strict=True)), self._groups
        if len(tensor) != len(groups):
            raise ValueError(f"a tensor of {self.ours} cannot be of shape {tensor}: its axes are {self.axes}")
        for size, (first, *others) in zip(tensor, groups, strict=True):
            if not others:
                sizes[first] = size
            elif size != sizes[first] * sizes[others[0]]:
                if size % sizes[first]:
                    raise ValueError(
                        f"{self.ours} has {sizes[first]} {first} ({self.axes}); {tensor} does not fit them"
                    )
                sizes[others[0]] = size // sizes[first]
        return tuple(sizes[letter] for letter in self._ours)

    def to_tensor(self, part: np.ndarray) -> np.ndarray:
        """Returns a part with the axes of a tensor."""
        return part.transpose(self._order).reshape(self.tensor_shape(part.shape))

    def from_tensor(self, tensor: np.ndarray, part: tuple[int, ...]) -> np.ndarray:
        """Returns a tensor with our axes, as a part of the given shape."""
        return tensor.reshape([part[axis] for axis in self._order]).transpose(np.argsort(self._order))

    @property
    def _ours(self) -> str:
        return self.axes.split(" -> ")[0]

    @property
    def _groups(self) -> list[str]:
        return [group.strip("()") for group in re.findall(r"\(\w+\)|\w", self.axes.split(" -> ")[1])]

    @property
    def _order(self) -> list[int]:
        return [self._ours.index(letter) for letter in "".join(self._groups)]
