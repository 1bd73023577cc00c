import av
import numpy as np
import pytest

from openpi_b1k.rollouts.videos import VideoWriter, camera_images, composite, count_frames
from openpi_b1k.sample.environment import SampleEnvironment


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
        frames = list(container.decode(stream))
        assert [round(frame.time * 30) for frame in frames] == list(range(len(frames)))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def smooth_frames(num, height, width):
    y, x = np.mgrid[:height, :width]
    return [np.stack([x + 10 * i, y + 50, 0 * x + 120], axis=-1).astype(np.uint8) for i in range(num)]


def test_a_video_holds_every_frame_in_order_with_its_colours(tmp_path):
    frames = smooth_frames(7, 32, 48)
    writer = VideoWriter(tmp_path / "new" / "one.mp4")
    for frame in frames:
        writer.add(frame)
    assert writer.num_frames == 7
    writer.close()
    writer.close()
    stored = read(tmp_path / "new" / "one.mp4")
    assert stored.shape == (7, 32, 48, 3)
    error = np.abs(stored.astype(int) - np.stack(frames)).mean()
    assert error < 4, error  # and the next frame or another channel order would be 10 and 50 off
    assert count_frames(tmp_path / "new" / "one.mp4") == 7


def test_frames_that_do_not_fit_are_refused(tmp_path):
    writer = VideoWriter(tmp_path / "one.mp4")
    for wrong in (np.zeros((3, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"a frame must be uint8 .* with even height and width; got"):
            writer.add(wrong)
    writer.add(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"one.mp4 is of 16 x 16 pixels; frame 1 is \[16, 18, 3\]"):
        writer.add(np.zeros((16, 18, 3), np.uint8))
    writer.close()
    assert count_frames(tmp_path / "one.mp4") == 1


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no video at .*none.mp4"):
        count_frames(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text.mp4 is no video that can be read"):
        count_frames(tmp_path / "text.mp4")


def test_the_composite_has_each_camera_at_its_place():
    colours = {"head": (200, 0, 0), "left_wrist": (0, 200, 0), "right_wrist": (0, 0, 200)}
    images = {name: np.full((64, 64, 3), colour, np.uint8) for name, colour in colours.items()}
    picture = composite(images)
    assert (picture.shape, picture.dtype) == ((448, 672, 3), np.uint8)
    assert (picture[:224, :224] == colours["left_wrist"]).all()
    assert (picture[224:, :224] == colours["right_wrist"]).all()
    assert (picture[:, 224:] == colours["head"]).all()


def test_images_of_an_observation_lose_their_alpha():
    observation = SampleEnvironment("2026", 0, 0).observation()
    images = camera_images(observation)
    assert {name: image.shape for name, image in images.items()} == {
        "head": (84, 84, 3),
        "left_wrist": (56, 56, 3),
        "right_wrist": (56, 56, 3),
    }
    key = "robot_r1::robot_r1:left_realsense_link:Camera:0::rgb"
    np.testing.assert_array_equal(images["left_wrist"], observation[key][..., :3])
