import pytest

from openpi_b1k.robots.layout import Camera, Field, Layout, Robot, Source

LAYOUT = Layout((Field("base", 3, "m/s"), Field("arm", 7, "rad"), Field("gripper", 1, "1")))
QPOS = Field("qpos", 11, "rad")
CAMERA = Camera("head", "sim:head", ("rgb.head",), size=720, focal_length=306.0)


def make_robot(**changes):
    fields = {
        "name": "Toy",
        "action": LAYOUT,
        "state": Layout(LAYOUT.fields[::-1]),
        "proprios": (Layout((QPOS,)), Layout((QPOS, Field("qvel", 11, "rad/s")))),
        "sources": (("arm", Source("qpos")),),
        "cameras": (CAMERA,),
        "action_limits": ((-1.0, 1.0),) * 11,
    }
    return Robot(**fields | changes)


def test_slices_follow_each_other_and_cover_the_vector():
    covered = [i for name in LAYOUT.names for i in range(LAYOUT.size)[LAYOUT.slice(name)]]
    assert covered == list(range(11))
    assert LAYOUT.names == ("base", "arm", "gripper")
    assert LAYOUT.slice("arm") == slice(3, 10)
    assert LAYOUT.size == 11
    assert make_robot().state.slice("arm") == slice(1, 8)


def test_an_unknown_field_is_refused_with_those_there_are():
    with pytest.raises(KeyError, match="no field 'torso'; known fields: base, arm, gripper"):
        LAYOUT.slice("torso")


def test_a_field_twice_is_refused():
    with pytest.raises(ValueError, match="a layout must name each field once; got arm, arm"):
        Layout((Field("arm", 7, "rad"), Field("arm", 7, "rad")))


def test_proprio_is_told_apart_by_its_size():
    robot = make_robot()
    assert robot.proprio(11) is robot.proprios[0]
    assert robot.proprio(22) is robot.proprios[1]
    with pytest.raises(ValueError, match="proprio of Toy has 11 or 22 entries; got 12"):
        robot.proprio(12)


def test_a_camera_by_name():
    robot = make_robot()
    assert robot.camera("head") is CAMERA
    with pytest.raises(KeyError, match="no camera 'tail'; known cameras: head"):
        robot.camera("tail")
