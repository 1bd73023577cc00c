"""The R1 Pro as BEHAVIOR-1K records and commands it, in 2025 and in 2026.

Source: OmniGibson `learning/utils/eval_utils.py` (2025) and `eval/` (2026): PROPRIOCEPTION_INDICES,
ACTION_QPOS_INDICES, JOINT_RANGE, ROBOT_CAMERA_NAMES, CAMERA_INTRINSICS; the state orders are those of openpi-comet
(grippers last) and of the official 2026 baseline (like the action).
"""

from openpi_b1k.config.data import StateLayout
from openpi_b1k.robots.layout import Camera, Field, Layout, Robot, Source

NAME = "R1Pro"

ACTION = Layout(
    (
        Field("base", 3, "controller units in [-1, 1]: vx, vy, yaw rate in the robot frame"),
        Field("torso", 4, "rad"),
        Field("left_arm", 7, "rad"),
        Field("left_gripper", 1, "1: +1 open, -1 closed"),
        Field("right_arm", 7, "rad"),
        Field("right_gripper", 1, "1: +1 open, -1 closed"),
    )
)

PROPRIO_2025 = Layout(
    (
        Field("joint_qpos", 28, "rad or m"),
        Field("joint_qpos_sin", 28, "1"),
        Field("joint_qpos_cos", 28, "1"),
        Field("joint_qvel", 28, "rad/s or m/s"),
        Field("joint_qeffort", 28, "meaningless in the demonstrations: they were replayed without physics"),
        Field("robot_pos", 3, "m"),
        Field("robot_ori_cos", 3, "1"),
        Field("robot_ori_sin", 3, "1"),
        Field("robot_2d_ori", 1, "rad"),
        Field("robot_2d_ori_cos", 1, "1"),
        Field("robot_2d_ori_sin", 1, "1"),
        Field("robot_lin_vel", 3, "m/s"),
        Field("robot_ang_vel", 3, "rad/s"),
        Field("arm_left_qpos", 7, "rad"),
        Field("arm_left_qpos_sin", 7, "1"),
        Field("arm_left_qpos_cos", 7, "1"),
        Field("arm_left_qvel", 7, "rad/s"),
        Field("eef_left_pos", 3, "m"),
        Field("eef_left_quat", 4, "1, xyzw"),
        Field("gripper_left_qpos", 2, "m"),
        Field("gripper_left_qvel", 2, "m/s"),
        Field("arm_right_qpos", 7, "rad"),
        Field("arm_right_qpos_sin", 7, "1"),
        Field("arm_right_qpos_cos", 7, "1"),
        Field("arm_right_qvel", 7, "rad/s"),
        Field("eef_right_pos", 3, "m"),
        Field("eef_right_quat", 4, "1, xyzw"),
        Field("gripper_right_qpos", 2, "m"),
        Field("gripper_right_qvel", 2, "m/s"),
        Field("trunk_qpos", 4, "rad"),
        Field("trunk_qvel", 4, "rad/s"),
        Field("base_qpos", 3, "m, m, rad"),
        Field("base_qpos_sin", 3, "1"),
        Field("base_qpos_cos", 3, "1"),
        Field("base_qvel", 3, "m/s, m/s, rad/s"),
    )
)

PROPRIO_2026 = Layout(
    (
        Field("base_qvel", 3, "m/s, m/s, rad/s in the robot frame"),
        Field("arm_left_qpos", 7, "rad"),
        Field("arm_left_qvel", 7, "rad/s"),
        Field("eef_left_pos", 3, "m"),
        Field("eef_left_quat", 4, "1, xyzw"),
        Field("gripper_left_qpos", 2, "m"),
        Field("gripper_left_qvel", 2, "m/s"),
        Field("arm_right_qpos", 7, "rad"),
        Field("arm_right_qvel", 7, "rad/s"),
        Field("eef_right_pos", 3, "m"),
        Field("eef_right_quat", 4, "1, xyzw"),
        Field("gripper_right_qpos", 2, "m"),
        Field("gripper_right_qvel", 2, "m/s"),
        Field("trunk_qpos", 4, "rad"),
        Field("trunk_qvel", 4, "rad/s"),
    )
)

PROPRIO = {"2025": PROPRIO_2025, "2026": PROPRIO_2026}

PROPRIO_IN_USE = Layout(
    (
        Field("base_qvel", 3, "m/s, m/s, rad/s"),
        Field("trunk_qpos", 4, "rad"),
        Field("arm_left_qpos", 7, "rad"),
        Field("gripper_left_qpos", 2, "m"),
        Field("arm_right_qpos", 7, "rad"),
        Field("gripper_right_qpos", 2, "m"),
    )
)
"""What the state is made of, of either generation's proprio: all that a data set's column cache keeps."""

SOURCES = (
    ("base", Source("base_qvel")),
    ("torso", Source("trunk_qpos")),
    ("left_arm", Source("arm_left_qpos")),
    ("right_arm", Source("arm_right_qpos")),
    ("left_gripper", Source("gripper_left_qpos", is_summed=True)),
    ("right_gripper", Source("gripper_right_qpos", is_summed=True)),
)

STATE_FIELDS = {
    "base": Field("base", 3, "m/s, m/s, rad/s"),
    "torso": Field("torso", 4, "rad"),
    "left_arm": Field("left_arm", 7, "rad"),
    "right_arm": Field("right_arm", 7, "rad"),
    "left_gripper": Field("left_gripper", 1, "m: sum of both fingers"),
    "right_gripper": Field("right_gripper", 1, "m: sum of both fingers"),
}
STATE_ORDERS = {
    "grippers_last": ("base", "torso", "left_arm", "right_arm", "left_gripper", "right_gripper"),
    "like_action": ACTION.names,
}

CAMERAS = (
    Camera(
        name="head",
        simulator_name="robot_r1::robot_r1:zed_link:Camera:0",
        dataset_keys=(
            "observation.images.rgb.head",
            "observation.rgb.zed_link_camera_0",
            "observation.images.head",
        ),
        depth_keys=("observation.images.depth.head", "observation.depth_linear.zed_link_camera_0"),
        segmentation_keys=("observation.images.seg_instance_id.head",),
        size=720,
        focal_length=306.0,
    ),
    Camera(
        name="left_wrist",
        simulator_name="robot_r1::robot_r1:left_realsense_link:Camera:0",
        dataset_keys=(
            "observation.images.rgb.left_wrist",
            "observation.rgb.left_realsense_link_camera_0",
            "observation.images.left_wrist",
        ),
        depth_keys=("observation.images.depth.left_wrist", "observation.depth_linear.left_realsense_link_camera_0"),
        segmentation_keys=("observation.images.seg_instance_id.left_wrist",),
        size=480,
        focal_length=388.6639,
    ),
    Camera(
        name="right_wrist",
        simulator_name="robot_r1::robot_r1:right_realsense_link:Camera:0",
        dataset_keys=(
            "observation.images.rgb.right_wrist",
            "observation.rgb.right_realsense_link_camera_0",
            "observation.images.right_wrist",
        ),
        depth_keys=("observation.images.depth.right_wrist", "observation.depth_linear.right_realsense_link_camera_0"),
        segmentation_keys=("observation.images.seg_instance_id.right_wrist",),
        size=480,
        focal_length=388.6639,
    ),
)

ACTION_LIMITS = (
    *((-1.0, 1.0),) * 3,
    (-1.1345, 1.8326), (-2.7925, 2.5307), (-1.8326, 1.5708), (-3.0543, 3.0543),
    (-4.4506, 1.3090), (-0.1745, 3.1416), (-2.3562, 2.3562), (-2.0944, 0.3491),
    (-2.3562, 2.3562), (-1.0472, 1.0472), (-1.5708, 1.5708),
    (-1.0, 1.0),
    (-4.4506, 1.3090), (-3.1416, 0.1745), (-2.3562, 2.3562), (-2.0944, 0.3491),
    (-2.3562, 2.3562), (-1.0472, 1.0472), (-1.5708, 1.5708),
    (-1.0, 1.0),
)  # fmt: skip


def r1pro(state_layout: StateLayout) -> Robot:
    """Returns the R1 Pro with the model's state in the given order."""
    return Robot(
        name=NAME,
        action=ACTION,
        state=Layout(tuple(STATE_FIELDS[name] for name in STATE_ORDERS[state_layout])),
        proprios=(PROPRIO_2025, PROPRIO_2026, PROPRIO_IN_USE),
        sources=SOURCES,
        cameras=CAMERAS,
        action_limits=ACTION_LIMITS,
    )
