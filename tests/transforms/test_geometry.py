"""Points from depth against the stored reference and against pinholes written out by hand."""

import numpy as np
import pytest

from openpi_b1k.robots.layout import Camera
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.geometry import MAX_DEPTH, PointCloud, check_stride, depth_to_points

HEAD = r1pro("like_action").camera("head")
SMALL = Camera(name="small", simulator_name="", dataset_keys=(), size=8, focal_length=5.0)


def test_agrees_with_comet(reference):
    points = depth_to_points(reference["b1k/in/depth"], HEAD, stride=9)
    assert (points.shape, points.dtype) == ((16, 400, 3), np.float32)
    np.testing.assert_allclose(points, reference["b1k/out/pcd_xyz_downsample9"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_each_point_lies_on_its_pixels_ray_at_its_distance(stride):
    depth = np.random.default_rng(0).uniform(0, MAX_DEPTH, (8, 8)).astype(np.float32)
    expected = [
        [(u - 4) * depth[v, u] / 5, (v - 4) * depth[v, u] / 5, depth[v, u]]
        for v in range(0, 8, stride)
        for u in range(0, 8, stride)
    ]
    points = depth_to_points(depth, SMALL, stride)
    np.testing.assert_allclose(points, np.reshape(expected, (16, -1, 3)), atol=1e-6)


def test_a_smaller_depth_image_gives_as_many_points_on_nearly_the_same_rays():
    """A plane 2 m away: whatever the resolution, points lie in it, next to those of the native image."""
    native = depth_to_points(np.full((720, 720), 2.0), HEAD, stride=9)
    for size in (84, 224, 360, 1440):
        points = depth_to_points(np.full((size, size), 2.0), HEAD, stride=9)
        assert points.shape == native.shape
        pixel = 2.0 / HEAD.focal_length * max(720 / size, 1)
        assert np.abs(points - native).max() <= pixel / 2 + 1e-6
        np.testing.assert_array_equal(points[..., 2], 2.0)


def test_a_smaller_image_is_read_at_the_nearest_pixel():
    depth = np.arange(16, dtype=np.float32).reshape(4, 4) / 2  # half of the small camera's size
    z = depth_to_points(depth, SMALL, 1)[..., 2].reshape(8, 8)
    np.testing.assert_array_equal(z, np.repeat(np.repeat(depth, 2, 0), 2, 1))


def test_far_is_as_far_as_the_demonstrations_see():
    depth = np.array([[np.inf, 11.0], [MAX_DEPTH, 3.0]], np.float32)
    z = depth_to_points(depth, SMALL, 1)[..., 2]
    assert set(z.ravel()) == {np.float32(MAX_DEPTH), np.float32(3.0)}


def test_strides_that_the_groups_cannot_share_are_refused():
    for stride in (1, 9, 45, 90, 180):
        check_stride(stride, HEAD)
    with pytest.raises(ValueError, match=r"depth_stride 8 .*8100 points of camera 'head', .* 16 groups.* \[1, .* 9, "):
        PointCloud(HEAD, 8)
    with pytest.raises(ValueError, match="depth_stride 5 gives 4 points of camera 'small'"):
        depth_to_points(np.ones((8, 8)), SMALL, 5)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.ones((8, 8, 1)), r"depth of camera 'small' must be \[h, w\] in m; got \[8, 8, 1\]"),
        (np.full((8, 8), np.nan), "must be distances in m; it holds NaN or negative"),
        (np.full((8, 8), -1.0), "must be distances in m; it holds NaN or negative"),
    ],
)
def test_what_is_no_depth_is_refused(depth, message):
    with pytest.raises(ValueError, match=message):
        depth_to_points(depth, SMALL, 1)


def test_the_transform_replaces_depth():
    depth = np.random.default_rng(0).uniform(0, 5, (8, 8))
    sample = PointCloud(SMALL, 2)({"depth": depth, "state": 1})
    assert list(sample) == ["state", "point_cloud"]
    np.testing.assert_array_equal(sample["point_cloud"], depth_to_points(depth, SMALL, 2))
