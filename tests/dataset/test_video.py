"""Frames by number against decoding from the start, whatever the GOP, the B-frames and the start offset."""

from fractions import Fraction

import av
import numpy as np
import pytest

from openpi_b1k.data.frames.decoding import Decoder, DecoderPool, Reader, may_skip
from openpi_b1k.data.frames.files import OpenFile, OpenFiles
from openpi_b1k.data.frames.mp4 import read_table
from openpi_b1k.data.frames.video import OpenVideos, VideoFrames, key_frame_distance
from openpi_b1k.data.index.formats import open_index
from tests.dataset.dataset_cases import NAMES, make_config


def decode_all(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write(path, num_frames, *, codec, options, size=64, fps=30, first_pts=0, container_options=None, step=1):
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
    "av1": ("libsvtav1", {"g": "8", "preset": "12"}),
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
    video = VideoFrames(path, 30, (64, 64))
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
    fed = count_fed(monkeypatch)
    VideoFrames(path, 30, (144, 144)).read([3, 501])
    assert len(fed) < 20


def count_fed(monkeypatch):
    """Returns a list that grows by (frame, whether it may be left out) with every packet decoded."""
    fed, feed = [], Decoder.feed
    monkeypatch.setattr(
        Decoder,
        "feed",
        lambda self, data, number, *, skip: fed.append((number, skip)) or feed(self, data, number, skip=skip),
    )
    return fed


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
    with pytest.raises(ValueError, match=r"video.mp4 is 64 x 64 pixels, meta/info.json says 720 x 480"):
        VideoFrames(path, 25, (720, 480)).read([0])
    with pytest.raises(ValueError, match=r"2.40 frames after its start, but the data set has 30 .* the file has 25"):
        VideoFrames(path, 30, (64, 64)).read([3])
    with pytest.raises(ValueError, match="counted from 0; got -1"):
        VideoFrames(path, 30, (64, 64)).read([-1])
    with pytest.raises(FileNotFoundError, match=r"no video .*absent.mp4; .*--data.tasks"):
        VideoFrames(tmp_path / "absent.mp4", 30, (64, 64)).read([0])


def test_a_gap_is_refused(tmp_path):
    path = write(tmp_path / "video.mp4", 8, codec="libx264", options={"g": "2"}, step=2)
    np.testing.assert_array_equal(VideoFrames(path, 30, (64, 64)).read([4])[0], decode_all(path)[2])
    with pytest.raises(ValueError, match="has no frame 3: frame 4 follows 2"):
        VideoFrames(path, 30, (64, 64)).read([3])


def test_a_damaged_video_is_refused(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"not a video at all" * 100)
    with pytest.raises(ValueError, match=r"video.mp4 is no MP4 file"):
        VideoFrames(path, 30, (64, 64)).read([0])


def copy_of(data_dir, tmp_path, name="task-0001/observation.images.rgb.head/episode_00010010.mp4"):
    path = tmp_path / "video.mp4"
    path.write_bytes((data_dir / "b1k_2025/videos" / name).read_bytes())
    return path


def test_a_file_cut_off_is_refused_where_it_is_cut(data_dir, tmp_path):
    path = copy_of(data_dir, tmp_path)
    content = path.read_bytes()
    table = read_table(OpenFile(path), 30)
    front = write(tmp_path / "front.mp4", 24, codec="libx264", options=NO_B, container_options=FASTSTART)
    whole = VideoFrames(front, 30, (64, 64)).read(range(24))
    front.write_bytes(front.read_bytes()[:-30])
    video = VideoFrames(front, 30, (64, 64))
    np.testing.assert_array_equal(video.read(range(16)), whole[:16])
    with pytest.raises(ValueError, match=r"front.mp4 is cut off: frame 23 lies behind its end; download it again"):
        video.read([23])
    for size in (0, 20, int(table.offsets[3])):  # the sample table is at the end of this file
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"video.mp4 is no whole MP4 file \(no moov box\); download it again"):
            VideoFrames(path, 30, (144, 144)).read([0])
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"video.mp4 (is damaged|is no)"):
        VideoFrames(path, 30, (144, 144)).read([0])


NO_B = {"g": "8", "bf": "0"}
FASTSTART = {"movflags": "faststart"}


def test_damaged_pictures_are_refused_and_those_before_are_not(data_dir, tmp_path):
    path = copy_of(data_dir, tmp_path)
    table = read_table(OpenFile(path), 30)
    expected = decode_all(path)
    packet = table.packet(300)
    content = bytearray(path.read_bytes())
    start, size = int(table.offsets[packet]), int(table.sizes[packet])
    content[start : start + size] = b"\x00" * size
    path.write_bytes(content)
    video = VideoFrames(path, 30, (144, 144))
    np.testing.assert_array_equal(video.read([260])[0], expected[260])
    np.testing.assert_array_equal(video.read([501])[0], expected[501])
    with pytest.raises(ValueError, match=r"video.mp4 cannot be decoded near frame 300"):
        video.read([300])


def test_the_sample_table_is_what_ffmpeg_reads(data_dir, tmp_path):
    paths = sorted((data_dir / "b1k_2025/videos/task-0001").glob("*/episode_00010010.mp4"))
    paths += sorted((data_dir / "lerobot_v30").glob("videos/**/*.mp4"))
    paths += [write(tmp_path / "front.mp4", 24, codec="libx264", options={"g": "8"}, container_options=FASTSTART)]
    for path in paths:
        table = read_table(OpenFile(path), 30)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            frames = [round((packet.pts - stream.start_time) * stream.time_base * 30) for packet in packets]
            assert table.codec.extradata == stream.codec_context.extradata
        assert table.offsets.tolist() == [packet.pos for packet in packets]
        assert table.sizes.tolist() == [packet.size for packet in packets]
        assert table.numbers.tolist() == frames
        assert table.keys.tolist() == [i for i, packet in enumerate(packets) if packet.is_keyframe]


def test_a_part_of_a_table_reads_the_same_frames(data_dir):
    path = data_dir / "b1k_2025/videos/task-0001/observation.images.rgb.head/episode_00010010.mp4"
    file, expected = OpenFile(path), decode_all(path)
    whole = read_table(file, 30)
    for first, stop in ((0, 505), (240, 260), (251, 499), (503, 505), (100, 101)):
        part = whole.part(first, stop)
        assert len(part.sizes) <= stop - whole.key_number(first) + 8
        with DecoderPool().lent(part.codec) as decoder:
            numbers = sorted({first, (first + stop) // 2, stop - 1})
            for number, frame in zip(numbers, Reader(file, part, decoder).frames(numbers, pause=False), strict=True):
                np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[number])


@pytest.mark.parametrize(("codec", "options"), CODECS.values(), ids=CODECS)
def test_a_reader_goes_on_where_it_stopped(tmp_path, codec, options, monkeypatch):
    path = write(tmp_path / "video.mp4", 40, codec=codec, options=options)
    expected, file = decode_all(path), OpenFile(path)
    table = read_table(file, 30)
    fed = count_fed(monkeypatch)
    reader = Reader(file, table, DecoderPool().take(table.codec))
    for run in ([0, 1, 2], [3, 4, 5, 6, 7], [8], [9, 10, 12, 13], [14, 16, 19], [18, 21], [20], [35, 39], [1]):
        for number, frame in zip(run, reader.frames(run, pause=True), strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[number], err_msg=f"frame {number}")
    del fed[:]
    reader = Reader(file, table, DecoderPool().take(table.codec))
    for first in range(0, 40, 5):
        list(reader.frames(range(first, first + 5), pause=True))
    assert sorted(number for number, _ in fed) == list(range(40))  # every packet once


def test_frames_that_no_other_needs_are_left_out(data_dir, monkeypatch):
    path = data_dir / "b1k_2025/videos/task-0001/observation.images.rgb.head/episode_00010010.mp4"
    expected, fed = decode_all(path), count_fed(monkeypatch)
    for number in (100, 101, 102, 103):
        np.testing.assert_array_equal(VideoFrames(path, 30, (144, 144)).read([number])[0], expected[number])
    assert sum(skip for _, skip in fed) > 300
    assert may_skip(read_table(OpenFile(path), 30).codec)


def test_files_and_tables_are_kept_up_to_a_bound(data_dir):
    paths = sorted((data_dir / "b1k_2025/videos").glob("**/*.mp4"))
    files = OpenFiles(most=16)
    held = [files.get(path) for path in paths]
    assert files.get(paths[-1]) is held[-1]
    assert files.get(paths[0]) is not held[0]  # forgotten, yet open while somebody has it
    assert len(held[0].read(0, 8)) == 8
    videos = OpenVideos(30, most_bytes=5_000)
    for path in paths[:6]:
        _, table = videos.get(path, 10, 60)
        assert videos.get(path, 10, 60)[1] is table
    assert videos.get(paths[0], 10, 60)[1] is not None


@pytest.mark.parametrize(("generation", "distance"), [("2025", 250), ("2026", 2)])
def test_key_frame_distance_is_read_from_the_table(data_dir, generation, distance):
    root = data_dir / NAMES[generation]
    index = open_index(root, make_config(generation, root).data)
    assert key_frame_distance(index) == distance


def test_other_files_are_refused(tmp_path):
    path = write(tmp_path / "frag.mp4", 8, codec="libx264", options={}, container_options={"movflags": "frag_keyframe"})
    with pytest.raises(ValueError, match=r"frag.mp4 is fragmented; remux it with ffmpeg -c copy"):
        VideoFrames(path, 30, (64, 64)).read([0])
    path = write(tmp_path / "old.mp4", 8, codec="mpeg4", options={})
    with pytest.raises(ValueError, match=r"old.mp4 is encoded as 'mp4v'; this reader knows h264, hevc, libdav1d"):
        VideoFrames(path, 30, (64, 64)).read([0])
