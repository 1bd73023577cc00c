"""Codes of distances and instances, and the files they come in, against formulas written out and decoded frames."""

import json
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO_2025, PROPRIO_2026
from openpi_b1k.sample import scene, write_2025, write_2026
from openpi_b1k.sample.recording import record
from openpi_b1k.sample.videos import DepthCode, Encoding, encode_video, paint_instances, palette
from openpi_b1k.sample.world import GOALS

HEAD_IDS = "robot_r1::robot_r1:zed_link:Camera:0::unique_ins_ids"


def decoded(path, pixel_format):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=pixel_format) for frame in container.decode(video=0)]


def stream_format(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.pix_fmt


def metres(codes, nearest, last):
    low, high = np.log(nearest + 3.5), np.log(13.5)
    return np.exp(codes / last * (high - low) + low) - 3.5


def test_a_video_has_a_frame_per_row_at_30_per_second(tmp_path):
    frames = np.zeros((10, 32, 32, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(10)[:, None, None] * 20
    path = tmp_path / "sub" / "video.mp4"
    encode_video(path, frames, 32, Encoding({"x265-params": "log-level=none:pools=none"}))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "hevc"
        assert stream.average_rate == 30
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    assert stream_format(path) == "yuv420p"
    assert times == [Fraction(i, 30) for i in range(10)]
    reds = [frame[..., 0].mean() for frame in decoded(path, "rgb24")]
    np.testing.assert_allclose(reds, np.arange(10) * 20, atol=6)


@pytest.mark.parametrize(("code", "last"), [(write_2025.DEPTH_CODE, 16383), (write_2026.DEPTH_CODE, 4095)])
def test_depth_codes_are_logarithmic_and_end_at_10_m(code, last):
    depth = np.array([0.0, code.nearest, 0.31, 5.0, 10.0, 20.0, np.inf])
    codes = code.encode(depth)
    assert codes.dtype == np.uint16
    assert codes[[0, 1, 4, 5, 6]].tolist() == [0, 0, last, last, last]
    step = 13.5 * np.log(13.5 / (code.nearest + 3.5)) / last
    np.testing.assert_allclose(metres(codes[2:5], code.nearest, last), depth[2:5], atol=step / 2 * 1.01)
    assert (np.diff(DepthCode(0.0, 14).encode(np.linspace(0, 10, 100)).astype(int)) > 0).all()


def test_the_palette_is_the_releases():
    first, others = [16, 125.5, 235], [16, 128, 240]
    expected = [[int(a), int(b), int(c)] for a in first for b in others for c in others]
    assert palette(27).tolist() == expected
    assert palette(9).tolist() == expected[:9]
    assert palette(28)[:2].tolist() == [[16, 16, 16], [16, 16, 90]]
    assert palette(1).tolist() == [[16, 16, 16]]


def test_instances_are_painted_by_their_position_in_the_list():
    instances = np.array([[44, 57], [31, 44]], np.uint8)
    painted = paint_instances(instances, [0, 57, 44, 31])
    assert painted.tolist() == palette(4)[[[2, 1], [3, 2]]].tolist()


def test_2025_has_all_nine_videos_of_an_episode(tmp_path):
    recording = record(1, GOALS[0], PROPRIO_2025, ("rgb", "depth", "segmentation"))
    write_2025.write_meta(tmp_path, write_2025.write_files(tmp_path, [recording], 0), ("rgb", "depth", "segmentation"))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["total_videos"] == 9
    keys = [f"observation.images.{kind}.{camera.name}" for kind in ("rgb", "depth", "seg_instance_id")
            for camera in CAMERAS]  # fmt: skip
    assert sorted(name for name in info["features"] if "images" in name) == sorted(keys)
    declared = info["features"]["observation.images.depth.head"]
    assert declared["names"] == ["height", "width", "depth"]
    assert (declared["info"]["video.pix_fmt"], declared["info"]["video.is_depth_map"]) == ("yuv420p16le", True)
    path = "videos/task-0000/{}/episode_00000010.mp4"
    assert all((tmp_path / path.format(key)).is_file() for key in keys)

    depth_file = tmp_path / path.format("observation.images.depth.head")
    assert stream_format(depth_file) == "yuv420p10le"
    depth = metres(np.stack(decoded(depth_file, "gray16le")).astype(float), 0.0, 16383)
    assert len(depth) == recording.length
    assert np.abs(depth - recording.depth["head"]).max() < 0.0053 * (0.81 + 3.5) + 0.003  # 64 codes and rounding

    metainfo = json.loads((tmp_path / "meta/episodes/task-0000/episode_00000010.json").read_text())
    names = {int(number): mesh for number, mesh in json.loads(metainfo["ins_id_mapping"]).items()}
    assert names[0] == "background"
    assert names[scene.CAPS["red"]].split("/")[3] == "red_button_1"
    colours = palette(len(metainfo[HEAD_IDS])).astype(int)
    frame = decoded(tmp_path / path.format("observation.images.seg_instance_id.head"), "rgb24")[3].astype(int)
    nearest = np.square(frame[:, :, None] - colours).sum(-1).argmin(-1)
    wrong = np.array(metainfo[HEAD_IDS])[nearest] != recording.instances["head"][3]
    assert wrong.mean() < 0.06  # edges, whose colours are averaged over 2 x 2 pixels


def test_2026_has_depth_with_its_places_in_the_episode_table(tmp_path):
    recordings = [record(i, GOALS[0], PROPRIO_2026, ("rgb", "depth")) for i in (1, 2)]
    entries = write_2026.write_files(tmp_path, recordings, 0)
    write_2026.write_meta(tmp_path, entries, ("rgb", "depth"))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    key = "observation.depth_linear.zed_link_camera_0"
    assert info["features"][key]["shape"] == [84, 84, 1]
    path = tmp_path / f"videos/{key}/chunk-000/file-000.mp4"
    assert stream_format(path) == "gray12le"
    depth = metres(np.stack(decoded(path, "gray12le")).astype(float), 0.01, 4095)
    shown = np.concatenate([recording.depth["head"] for recording in recordings])
    assert depth.shape == shown.shape
    errors = np.abs(depth - shown)  # CRF 0 is not lossless: at the table's edge, a step of 0.5 m, it rings
    assert errors.max() < 0.1
    assert errors.mean() < 0.002
    assert np.quantile(errors, 0.99) < 0.02
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row[f"videos/{key}/from_timestamp"] * 30 for row in rows] == [0, recordings[0].length]


def test_2026_has_no_segmentation(tmp_path):
    recording = record(1, GOALS[0], PROPRIO_2026, ("rgb", "segmentation"))
    with pytest.raises(ValueError, match="the 2026 release has no segmentation videos; use generation 2025"):
        write_2026.write_files(tmp_path, [recording], 0)
