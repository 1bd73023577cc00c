"""From a depth image to points in front of the camera."""

import dataclasses

import numpy as np

from openpi_b1k.robots.layout import Camera
from openpi_b1k.transforms.base import Sample

NUM_GROUPS = 16
"""Runs of rows that the points are grouped by; each becomes one token of the model."""
MAX_DEPTH = 10.0
"""Metres; the demonstrations' depth ends there, so what lies farther counts as that far in serving as well."""


def depth_to_points(depth: np.ndarray, camera: Camera, stride: int) -> np.ndarray:
    """Returns the points that a depth image shows, float32 [16, n, 3]: x right, y down, z forward, in m.

    Points lie under every `stride`-th row and column of the camera's native image, row by row, the rows in 16 equal
    groups. A depth image of another size is read at the nearest pixel, so a policy sees as many points, in the same
    order, from prepared data as from the simulator. At the native size it agrees with openpi-comet::

        720 px, stride 9: rows 0, 9, .. 711 and the same columns, 80 x 80 points, group g holds rows 5g .. 5g + 4

    Args:
        depth: [h, w] in m along the camera's axis, finite or +infinity; 10 m at most is kept.
        camera: gives native size and focal length; the principal point is the centre.
        stride: in native pixels.

    Raises:
        ValueError: `depth` is no image of distances, or `stride` gives points that 16 groups cannot share.

    Source: openpi-comet `b1k_policy.py` at 4bb2aa7 (`depth_to_pcd`).
    """
    check_stride(stride, camera)
    depth = np.asarray(depth, np.float32)
    if depth.ndim != 2 or not depth.size:
        raise ValueError(f"depth of camera {camera.name!r} must be [h, w] in m; got {list(depth.shape)}")
    native = np.arange(0, camera.size, stride)
    rows, columns = (((native + 0.5) * side / camera.size).astype(np.intp) for side in depth.shape)
    z = depth[rows[:, None], columns]
    if np.isnan(z).any() or (z < 0).any():
        raise ValueError(f"depth of camera {camera.name!r} must be distances in m; it holds NaN or negative ones")
    z = np.minimum(z, np.float32(MAX_DEPTH))
    y, x = (
        ((pixels + 0.5) * (camera.size / side) - 0.5 - camera.size / 2) / camera.focal_length
        for pixels, side in zip((rows, columns), depth.shape, strict=True)
    )
    points = np.stack([x * z, y[:, None] * z, z], axis=-1)
    return points.astype(np.float32).reshape(NUM_GROUPS, -1, 3)


def check_stride(stride: int, camera: Camera) -> None:
    """Refuses a stride whose points cannot be shared by 16 groups.

    Raises:
        ValueError: names the strides that can.
    """
    if not _is_divisible(stride, camera):
        allowed = [n for n in range(1, camera.size // 4 + 1) if _is_divisible(n, camera)]
        raise ValueError(
            f"depth_stride {stride} gives {len(range(0, camera.size, stride)) ** 2} points of camera {camera.name!r}, "
            f"which {NUM_GROUPS} groups cannot share; choose --data.transforms.depth-stride from {allowed}"
        )


def _is_divisible(stride: int, camera: Camera) -> bool:
    return len(range(0, camera.size, stride)) ** 2 % NUM_GROUPS == 0


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """Replaces `depth` [h, w] of a camera by `point_cloud` [16, n, 3]."""

    camera: Camera
    stride: int

    def __post_init__(self) -> None:
        check_stride(self.stride, self.camera)

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with points instead of depth."""
        points = depth_to_points(sample["depth"], self.camera, self.stride)
        return {name: value for name, value in sample.items() if name != "depth"} | {"point_cloud": points}
