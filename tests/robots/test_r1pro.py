"""The R1 Pro against tables of numbers.

Source: OmniGibson's PROPRIOCEPTION_INDICES, ACTION_QPOS_INDICES, JOINT_RANGE, ROBOT_CAMERA_NAMES and CAMERA_INTRINSICS,
and the state orders of openpi-comet and of the official 2026 baseline, written out here as plain numbers.
"""

import numpy as np
import pytest

from openpi_b1k.config import data
from openpi_b1k.robots.r1pro import ACTION, PROPRIO_2025, PROPRIO_2026, SOURCES, STATE_FIELDS, STATE_ORDERS, r1pro
from openpi_b1k.transforms.b1k import extract_state

STARTS_2025 = {
    "joint_qpos": 0, "joint_qpos_sin": 28, "joint_qpos_cos": 56, "joint_qvel": 84, "joint_qeffort": 112,
    "robot_pos": 140, "robot_ori_cos": 143, "robot_ori_sin": 146, "robot_2d_ori": 149, "robot_2d_ori_cos": 150,
    "robot_2d_ori_sin": 151, "robot_lin_vel": 152, "robot_ang_vel": 155,
    "arm_left_qpos": 158, "arm_left_qpos_sin": 165, "arm_left_qpos_cos": 172, "arm_left_qvel": 179,
    "eef_left_pos": 186, "eef_left_quat": 189, "gripper_left_qpos": 193, "gripper_left_qvel": 195,
    "arm_right_qpos": 197, "arm_right_qpos_sin": 204, "arm_right_qpos_cos": 211, "arm_right_qvel": 218,
    "eef_right_pos": 225, "eef_right_quat": 228, "gripper_right_qpos": 232, "gripper_right_qvel": 234,
    "trunk_qpos": 236, "trunk_qvel": 240, "base_qpos": 244, "base_qpos_sin": 247, "base_qpos_cos": 250,
    "base_qvel": 253,
}  # fmt: skip
STARTS_2026 = {
    "base_qvel": 0, "arm_left_qpos": 3, "arm_left_qvel": 10, "eef_left_pos": 17, "eef_left_quat": 20,
    "gripper_left_qpos": 24, "gripper_left_qvel": 26, "arm_right_qpos": 28, "arm_right_qvel": 35, "eef_right_pos": 42,
    "eef_right_quat": 45, "gripper_right_qpos": 49, "gripper_right_qvel": 51, "trunk_qpos": 53, "trunk_qvel": 57,
}  # fmt: skip
STARTS_ACTION = {"base": 0, "torso": 3, "left_arm": 7, "left_gripper": 14, "right_arm": 15, "right_gripper": 22}

# Entry of proprio that each entry of the state comes from; grippers are the sum of two entries.
ARMS_2025 = [*range(253, 256), *range(236, 240), *range(158, 165), *range(197, 204)]
STATES = {
    ("grippers_last", 256): [*ARMS_2025, (193, 194), (232, 233)],
    ("like_action", 256): [*ARMS_2025[:14], (193, 194), *ARMS_2025[14:], (232, 233)],
    ("like_action", 61): [*range(3), *range(53, 57), *range(3, 10), (24, 25), *range(28, 35), (49, 50)],
}

LOWER = [-1, -1, -1, -1.1345, -2.7925, -1.8326, -3.0543, -4.4506, -0.1745, -2.3562, -2.0944, -2.3562, -1.0472, -1.5708,
         -1, -4.4506, -3.1416, -2.3562, -2.0944, -2.3562, -1.0472, -1.5708, -1]  # fmt: skip
UPPER = [1, 1, 1, 1.8326, 2.5307, 1.5708, 3.0543, 1.3090, 3.1416, 2.3562, 0.3491, 2.3562, 1.0472, 1.5708,
         1, 1.3090, 0.1745, 2.3562, 0.3491, 2.3562, 1.0472, 1.5708, 1]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "starts", "size"),
    [(PROPRIO_2025, STARTS_2025, 256), (PROPRIO_2026, STARTS_2026, 61), (ACTION, STARTS_ACTION, 23)],
    ids=["2025", "2026", "action"],
)
def test_every_field_lies_where_the_simulator_puts_it(layout, starts, size):
    assert {name: layout.slice(name).start for name in layout.names} == starts
    assert layout.size == size
    stops = [*list(starts.values())[1:], size]
    assert [layout.slice(name).stop for name in layout.names] == stops


@pytest.mark.parametrize(("order", "size"), STATES, ids=str)
def test_the_state_is_made_of_the_right_entries(order, size):
    proprio = np.arange(size, dtype=np.float64) ** 2
    expected = [proprio[list(np.atleast_1d(entry))].sum() for entry in STATES[order, size]]
    np.testing.assert_array_equal(extract_state(r1pro(order), proprio), expected)


def test_state_orders_hold_the_action_fields():
    assert STATE_ORDERS["like_action"] == ACTION.names
    grippers_last = r1pro("grippers_last").state
    assert grippers_last.slice("right_arm") == slice(14, 21)
    assert (grippers_last.slice("left_gripper"), grippers_last.slice("right_gripper")) == (slice(21, 22), slice(22, 23))
    for order in STATE_ORDERS:
        sizes = {field.name: field.size for field in r1pro(order).state.fields}
        assert sizes == {field.name: field.size for field in ACTION.fields}


def test_every_state_field_has_one_source_of_its_size_in_both_generations():
    assert sorted(name for name, _ in SOURCES) == sorted(STATE_FIELDS)
    for name, source in SOURCES:
        for layout in (PROPRIO_2025, PROPRIO_2026):
            where = layout.slice(source.proprio_field)
            assert STATE_FIELDS[name].size == (1 if source.is_summed else where.stop - where.start)
    assert {name for name, source in SOURCES if source.is_summed} == {"left_gripper", "right_gripper"}


def test_limits_are_in_the_order_of_the_action():
    lower, upper = np.transpose(r1pro("like_action").action_limits)
    np.testing.assert_array_equal(lower, LOWER)
    np.testing.assert_array_equal(upper, UPPER)


def test_cameras():
    robot = r1pro("like_action")
    assert tuple(camera.name for camera in robot.cameras) == data.CAMERAS
    head, left, right = robot.cameras
    assert (head.size, head.focal_length, left.size, left.focal_length) == (720, 306.0, 480, 388.6639)
    assert (right.size, right.focal_length) == (left.size, left.focal_length)
    assert head.simulator_name == "robot_r1::robot_r1:zed_link:Camera:0"
    assert left.simulator_name == "robot_r1::robot_r1:left_realsense_link:Camera:0"
    assert left.video_keys("rgb") == (
        "observation.images.rgb.left_wrist",
        "observation.rgb.left_realsense_link_camera_0",
        "observation.images.left_wrist",
    )
    assert head.video_keys("depth") == ("observation.images.depth.head", "observation.depth_linear.zed_link_camera_0")
    assert head.video_keys("segmentation") == ("observation.images.seg_instance_id.head",)
    for camera, wrong in ((left, "right"), (right, "left")):
        keys = [key for modality in ("rgb", "depth", "segmentation") for key in camera.video_keys(modality)]
        assert not any(wrong in name for name in (camera.simulator_name, *keys))


def test_names_in_the_config_are_the_robots():
    assert ACTION.names == data.ACTION_FIELDS
