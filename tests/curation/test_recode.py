"""One video written anew: what comes out against an independent resize of what went in."""

import json

import av
import numpy as np
import PIL.Image
import pytest

from openpi_b1k.curation.encoders import each_frame, encoder_of, gray12_frame, write_video
from openpi_b1k.curation.recode import Job, Settings, codes_in_12_bits, nearest, recode
from openpi_b1k.data.frames import depth, segmentation
from openpi_b1k.data.index.episodes import Video
from openpi_b1k.robots.r1pro import CAMERAS

KEYS = {"rgb": "rgb", "depth": "observation.depth_linear.head", "segmentation": "seg"}
SETTINGS = Settings(image_size=32, key_frame_distance=4)


def job(tmp_path, modality, num_frames, size=96, **changes):
    values = {
        "source": tmp_path / "source.mp4",
        "target": tmp_path / "out/target.mp4",
        "name": "target.mp4",
        "video": Video("head", modality, KEYS[modality], size, size),
        "fps": 30,
        "num_frames": num_frames,
    }
    return Job(**values | changes)


def smooth_images(n, size):
    rows, columns = np.mgrid[0:size, 0:size] / size
    return [(np.stack([rows, columns, (rows + columns) / 2], axis=2) * 200 + 5 * i).astype(np.uint8) for i in range(n)]


def write_rgb(path, images, key_frame_distance=250):
    frames = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in images)
    write_video(path, frames, encoder_of("rgb", key_frame_distance, 5), len(images[0]), 30)


def key_frames(path):
    with av.open(str(path)) as container:
        return [i for i, packet in enumerate(p for p in container.demux(video=0) if p.size) if packet.is_keyframe]


def test_rgb_is_resized_as_pillow_does_with_key_frames_where_asked(tmp_path):
    images = smooth_images(9, 96)
    write_rgb(tmp_path / "source.mp4", images)
    result = recode(job(tmp_path, "rgb", 9), SETTINGS)
    written = [frame.to_ndarray(format="rgb24") for frame in each_frame(tmp_path / "out/target.mp4", 30, (32, 32))]
    assert len(written) == result.num_frames == 9
    assert key_frames(tmp_path / "out/target.mp4") == [0, 4, 8]
    assert result.psnr > 30
    for image, copy in zip(images, written, strict=True):
        expected = np.asarray(PIL.Image.fromarray(image).resize((32, 32), PIL.Image.Resampling.BILINEAR), int)
        assert np.abs(copy - expected).mean() < 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["target.mp4"]


def test_depth_codes_come_back_exactly(tmp_path):
    codes = np.random.default_rng(0).integers(0, 4096, (5, 96, 96)).astype(np.uint16)
    encoder = encoder_of("depth", 250, 0)
    write_video(tmp_path / "source.mp4", map(gray12_frame, codes), encoder, 96, 30)
    result = recode(job(tmp_path, "depth", 5), SETTINGS)
    assert result.psnr == np.inf
    written = [depth.luma(frame) for frame in each_frame(tmp_path / "out/target.mp4", 30, (32, 32))]
    np.testing.assert_array_equal(written, codes[:, 1::3, 1::3])


def test_segmentation_ids_come_back_exactly(tmp_path):
    colours = segmentation.palette(11)
    positions = np.random.default_rng(0).integers(0, 11, (40, 12, 12)).repeat(8, axis=1).repeat(8, axis=2)
    frames = (av.VideoFrame.from_ndarray(colours[one], format="rgb24") for one in positions)
    write_video(tmp_path / "source.mp4", frames, encoder_of("segmentation", 250, 0), 96, 30)
    name = CAMERAS[0].simulator_name
    content = {f"{name}::unique_ins_ids": list(range(100, 111)), "ins_id_mapping": "{}"}
    (tmp_path / "meta.json").write_text(json.dumps(content))
    recode(job(tmp_path, "segmentation", 40, metainfo=tmp_path / "meta.json"), SETTINGS)
    for frame, one in zip(each_frame(tmp_path / "out/target.mp4", 30, (32, 32)), positions, strict=True):
        decoded = segmentation.positions(frame.to_ndarray(format="rgb24"), 11)
        np.testing.assert_array_equal(decoded, one[1::3, 1::3])


def test_segmentation_without_its_list_of_ids_is_refused(tmp_path):
    write_rgb(tmp_path / "source.mp4", smooth_images(1, 96))
    with pytest.raises(FileNotFoundError, match=r"no .*missing.json, which tells what the colours"):
        recode(job(tmp_path, "segmentation", 1, metainfo=tmp_path / "missing.json"), SETTINGS)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="does not tell the instances of camera 'head'"):
        recode(job(tmp_path, "segmentation", 1, metainfo=tmp_path / "meta.json"), SETTINGS)
    with pytest.raises(ValueError, match="nothing tells what the colours"):
        recode(job(tmp_path, "segmentation", 1), SETTINGS)


def test_nearest_takes_the_pixel_at_the_centre():
    image = np.arange(720)[:, None] * 1000 + np.arange(720)
    expected = np.asarray(PIL.Image.fromarray(image.astype(np.int32)).resize((224, 224), PIL.Image.Resampling.NEAREST))
    np.testing.assert_array_equal(nearest(image, 224), expected)
    with pytest.raises(ValueError, match="must be square; got 4 x 6 pixels"):
        nearest(np.zeros((4, 6)), 2)


def test_a_source_shorter_than_its_episodes_is_refused_and_leaves_nothing(tmp_path):
    write_rgb(tmp_path / "source.mp4", smooth_images(5, 96))
    with pytest.raises(ValueError, match=r"source.mp4 has 5 frames, but its episodes have 6 rows"):
        recode(job(tmp_path, "rgb", 6), SETTINGS)
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_source_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no video .*source.mp4"):
        recode(job(tmp_path, "rgb", 6), SETTINGS)
    (tmp_path / "source.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"source.mp4"):
        recode(job(tmp_path, "rgb", 6), SETTINGS)


def test_a_copy_that_differs_too_much_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    write_rgb(tmp_path / "source.mp4", list(noise))
    with pytest.raises(ValueError, match=r"differs from it: PSNR 1?\d\.\d dB, below 20.0; lower --crf"):
        recode(job(tmp_path, "rgb", 3, 32), Settings(image_size=32, crf=51))


@pytest.mark.parametrize(("pixel_format", "bits"), [("yuv420p10le", 10), ("yuv420p12le", 12)])
def test_limited_range_depth_of_2025_keeps_its_meaning(pixel_format, bits):
    coding = depth.CODINGS["2025"]
    values = np.arange(2**bits)
    before = depth.metres(coding, pixel_format)[values]
    after = depth.metres(coding, "gray12le")[codes_in_12_bits(coding, pixel_format)[values]]
    step = np.diff(np.unique(depth.metres(coding, "gray12le"))).max()
    assert np.abs(after - before).max() <= step / 2 + 1e-5


def test_depth_videos_of_2025_keep_their_meaning(tmp_path, data_dir):
    sources = sorted(data_dir.glob("b1k_2025/videos/task-0000/observation.images.depth.*/episode_00000020.mp4"))
    for source in sources:
        key = source.parent.name
        coding = depth.coding(key)
        size = 144 if key.endswith("head") else 96
        video = Video("head", "depth", key, size, size)
        recode(job(tmp_path, "depth", 130, source=source, video=video), SETTINGS)
        again = each_frame(tmp_path / "out/target.mp4", 30, (32, 32))
        for old, new in zip(each_frame(source, 30, (size, size)), again, strict=True):
            before = nearest(depth.metres(coding, old.format.name)[depth.luma(old)], 32)
            after = depth.metres(coding, "gray12le")[depth.luma(new)]
            assert np.abs(after - before).max() <= (0 if old.format.name == "gray12le" else 0.011)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 33}, "image_size must be even and at least 32; got 33"),
        ({"key_frame_distance": 0}, "key_frame_distance must be at least 1; got 0"),
        ({"crf": 60}, r"crf must be in \[0, 51\]; got 60"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)
