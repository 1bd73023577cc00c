"""Frames by number against decoding from the start, whatever the GOP, the B-frames and the start offset."""

from fractions import Fraction

import av
import numpy as np
import pytest

from openpi_b1k.data.video import VideoFrames


def decode_all(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write(path, num_frames, *, codec, options, size=32, fps=30, first_pts=0, container_options=None, step=1):
    """Writes frames whose brightness tells their number."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number in range(num_frames):
            image = np.full((size, size, 3), 20 + 3 * number % 200, np.uint8)
            image[: size // 2] = number % 2 * 200
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number * step + first_pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


X265 = "log-level=none:pools=none:frame-threads=1:"
CODECS = {
    "hevc, closed GOP 8, no B-frames": ("libx265", {"x265-params": X265 + "keyint=8:min-keyint=8:bframes=0"}),
    "hevc, open GOP 10, B-frames": ("libx265", {"x265-params": X265 + "keyint=10:min-keyint=10:bframes=4:open-gop=1"}),
    "h264, GOP 2": ("libx264", {"g": "2"}),
    "h264, open GOP 12, B-frames": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
}


@pytest.mark.parametrize(("codec", "options"), CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("movflags", ["", "use_editlist=0", "first_pts"])
def test_every_frame_alone_equals_decoding_from_the_start(tmp_path, codec, options, movflags):
    path = write(
        tmp_path / "video.mp4",
        40,
        codec=codec,
        options=options,
        first_pts=5 if movflags == "first_pts" else 0,
        container_options={"use_editlist": "0"} if movflags == "use_editlist=0" else {},
    )
    expected = decode_all(path)
    assert len(expected) == 40
    video = VideoFrames(path, 30, (32, 32))
    for number in range(40):
        np.testing.assert_array_equal(video.read([number])[0], expected[number], err_msg=f"frame {number}")
    numbers = [39, 0, 7, 7, 21, 20, 8]
    np.testing.assert_array_equal(video.read(numbers), expected[numbers])
    np.testing.assert_array_equal(video.read(range(40)), expected)


@pytest.mark.parametrize("camera", ["head", "left_wrist", "right_wrist"])
def test_frames_around_key_frames_250_apart(data_dir, camera):
    name = f"videos/task-0001/observation.images.rgb.{camera}/episode_00010010.mp4"
    path = data_dir / "b1k_2025" / name
    expected = decode_all(path)
    video = VideoFrames(path, 30, expected.shape[1:3])
    numbers = [*range(246, 253), *range(497, 505), 0]
    for number in numbers:
        np.testing.assert_array_equal(video.read([number])[0], expected[number], err_msg=f"frame {number}")
    np.testing.assert_array_equal(video.read(numbers), expected[numbers])


def test_a_far_frame_is_sought(data_dir, monkeypatch):
    path = data_dir / "b1k_2025/videos/task-0001/observation.images.rgb.head/episode_00010010.mp4"
    decoded = []
    number = VideoFrames.each.__globals__["_Decoder"]._number  # noqa: SLF001  # counts the frames decoded
    monkeypatch.setattr(
        "openpi_b1k.data.video._Decoder._number", lambda self, pts: decoded.append(pts) or number(self, pts)
    )
    VideoFrames(path, 30, (144, 144)).read([3, 501])
    assert len(decoded) < 20


def test_no_numbers_no_frames(data_dir):
    path = data_dir / "b1k_2025/videos/task-0001/observation.images.rgb.head/episode_00010030.mp4"
    assert VideoFrames(path, 30, (144, 144)).read([]).shape == (0, 144, 144, 3)


def test_a_video_shorter_than_its_rows_is_refused(data_dir):
    path = data_dir / "b1k_2025/videos/task-0001/observation.images.rgb.head/episode_00010030.mp4"
    video = VideoFrames(path, 30, (144, 144))
    with pytest.raises(ValueError, match=r"episode_00010030.mp4 has no frame 121, its last is 120: the video is sh"):
        video.read([121])
    with pytest.raises(ValueError, match="has no frame 130, its last is 120"):
        video.read([0, 100, 130])


def test_a_video_of_another_size_rate_or_place_is_refused(tmp_path):
    path = write(tmp_path / "video.mp4", 8, codec="libx264", options={"g": "2"}, fps=25)
    with pytest.raises(ValueError, match=r"video.mp4 is 32 x 32 pixels, meta/info.json says 720 x 480"):
        VideoFrames(path, 25, (720, 480)).read([0])
    with pytest.raises(ValueError, match=r"2.40 frames after its start, but the data set has 30 .* says 25"):
        VideoFrames(path, 30, (32, 32)).read([3])
    with pytest.raises(ValueError, match="counted from 0; got -1"):
        VideoFrames(path, 30, (32, 32)).read([-1])
    with pytest.raises(FileNotFoundError, match=r"no video .*absent.mp4; .*--data.tasks"):
        VideoFrames(tmp_path / "absent.mp4", 30, (32, 32)).read([0])


def test_a_gap_is_refused(tmp_path):
    path = write(tmp_path / "video.mp4", 8, codec="libx264", options={"g": "2"}, step=2)
    np.testing.assert_array_equal(VideoFrames(path, 30, (32, 32)).read([4])[0], decode_all(path)[2])
    with pytest.raises(ValueError, match="has no frame 3: frame 4 follows 2"):
        VideoFrames(path, 30, (32, 32)).read([3])


def test_a_damaged_video_is_refused(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"not a video at all" * 100)
    with pytest.raises(ValueError, match=r"video.mp4"):
        VideoFrames(path, 30, (32, 32)).read([0])
