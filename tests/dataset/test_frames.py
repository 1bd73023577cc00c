"""Depth and segmentation against openpi-comet's reader, and the window of decoded runs."""

import dataclasses
import json

import av
import numpy as np
import pytest

from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames import depth, segmentation
from openpi_b1k.data.frames.decoding import Decoder
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.frames.runs import WindowSize
from openpi_b1k.data.frames.video import VideoFrames
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.index.segments import Kind, Segments
from openpi_b1k.data.prompts import PromptSource
from openpi_b1k.robots.r1pro import r1pro
from tests.dataset.dataset_cases import make_config

CAMERAS = ("head", "left_wrist", "right_wrist")


@pytest.fixture
def root(data_dir):
    return data_dir / "b1k_2025"


@pytest.fixture
def expected(root):
    with np.load(root / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def index(root):
    return open_index(root, make_config("2025", None, modalities=("rgb", "depth", "segmentation")).data)


def frames_of(root, expected, key):
    """Yields (n, episode, frame in the file's own format) of every expected frame of a video key."""
    for number in np.unique(expected["episode_index"]).tolist():
        places = np.flatnonzero(expected["episode_index"] == number)
        path = root / f"videos/task-{number // 10000:04d}/{key}/episode_{number:08d}.mp4"
        shape = expected[key].shape[1:3]
        for i, frame in VideoFrames(path, 30, shape).decoded(expected["index"][places].tolist()):
            yield int(places[i]), number, frame


@pytest.mark.parametrize(
    ("camera", "pixel_format"),
    [("head", "gray12le"), ("left_wrist", "yuv420p10le"), ("right_wrist", "yuv420p12le")],
)
def test_depth_is_what_the_reference_reads(root, expected, camera, pixel_format):
    key = f"observation.images.depth.{camera}"
    count = 0
    for n, _, frame in frames_of(root, expected, key):
        assert frame.format.name == pixel_format
        luma = depth.luma(frame)
        np.testing.assert_array_equal(luma, expected[f"depth_luma.{camera}"][n])
        metres = depth.metres(depth.coding(key), pixel_format)[luma]
        tolerance = 1e-5 if camera == "head" else 2 / 16383 * 1.35 * (expected[key][n] + 3.5) + 1e-5
        assert (np.abs(metres - expected[key][n]) <= tolerance).all()
        assert metres.dtype == np.float32
        count += 1
    assert count == 41


LARGEST_ERRORS = {"gray12le": (15, 0.005, 0.013), "yuv420p12le": (10, 0.004, 0.011), "yuv420p10le": (38, 0.015, 0.040)}
"""In codes, and in metres around 1 m and around 9 m, as the docstring of depth.py has them."""


@pytest.mark.parametrize("pixel_format", LARGEST_ERRORS)
def test_depth_errors_are_as_stated(pixel_format):
    codes = np.arange(16384, dtype=np.uint16)
    frame = av.VideoFrame.from_ndarray(codes.reshape(64, 256), format="gray16le").reformat(format=pixel_format)
    coding = depth.CODINGS["2025"]
    read = depth.metres(coding, pixel_format)[depth.luma(frame).ravel()].astype(np.float64)
    most_codes, *most_metres = LARGEST_ERRORS[pixel_format]
    true = depth.decode(coding, codes)
    assert np.abs(depth.encode(coding, read).astype(int) - codes).max() == most_codes
    for middle, most in zip((1, 9), most_metres, strict=True):
        largest = np.abs(read - true)[np.abs(true - middle) < 0.1].max()
        assert most - 0.001 < largest <= most


def test_2026_codes_are_read_as_they_are():
    coding = depth.coding("observation.depth_linear.zed_link_camera_0")
    assert (coding.near, coding.top) == (0.01, 4095)
    table = depth.metres(coding, "gray12le").astype(np.float64)
    assert (table[0], table[4095]) == pytest.approx((0.01, 10.0))
    metres = np.linspace(0.01, 10, 5000)
    codes = np.round((np.log(metres + 3.5) - np.log(3.51)) / (np.log(13.5) - np.log(3.51)) * 4095).astype(int)
    np.testing.assert_array_equal(depth.encode(coding, metres), codes)
    assert np.abs(table[codes] - metres).max() < 0.0023
    assert np.abs(table[codes] - metres)[metres < 1].max() < 0.0008


def test_other_pixel_formats_are_refused():
    with pytest.raises(ValueError, match=r"depth cannot be read from pixel format yuv420p; known are gray10le, gray12"):
        depth.metres(depth.CODINGS["2025"], "yuv420p")


@pytest.mark.parametrize("camera", CAMERAS)
def test_segmentation_ids_are_what_the_reference_reads(root, expected, camera):
    key = f"observation.images.seg_instance_id.{camera}"
    for n, number, frame in frames_of(root, expected, key):
        path = root / f"meta/episodes/task-{number // 10000:04d}/episode_{number:08d}.json"
        ids = np.array(segmentation.read_instances(path, camera).ids)
        image = frame.to_ndarray(format="rgb24")
        np.testing.assert_array_equal(ids[segmentation.positions(image, len(ids))], expected[key][n])


def test_the_nearest_colour_of_a_palette_is_found():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for count in (1, 2, 7, 8, 9, 14, 27, 100, 300):
        colours = []
        levels = next(n for n in range(1, 20) if n**3 >= count)
        for y in np.linspace(16, 235, levels):
            colours += [
                (int(y), int(u), int(v)) for u in np.linspace(16, 240, levels) for v in np.linspace(16, 240, levels)
            ]
        np.testing.assert_array_equal(segmentation.palette(count), colours[:count])
        distances = ((image[:, :, None].astype(int) - np.array(colours[:count])) ** 2).sum(-1)
        np.testing.assert_array_equal(segmentation.positions(image, count), distances.argmin(-1))


def first_skills(index):
    """Returns segments in which an episode's first skill lasts to its end, as openpi-comet's reader has it."""
    skills = read_annotations(index).skills
    count = len(index.numbers)
    kinds = skills.kind_ids[skills.offsets[:-1]]
    return Segments(index.numbers, np.arange(count + 1), np.zeros(count, int), index.lengths, kinds, skills.kinds)


def dataset_of(index, skills):
    prompts = PromptSource(index, None)
    return B1kDataset(index, Columns(index, r1pro("like_action")), EpisodeFrames(index), skills, prompts, 32)


def test_labels_are_what_the_reference_gives_the_first_skill(index, expected):
    dataset = dataset_of(index, first_skills(index))
    pairs = zip(expected["seg_instance.head/episode_index"], expected["seg_instance.head/index"], strict=True)
    for labels, (number, frame) in zip(expected["seg_instance.head/labels"], pairs, strict=True):
        row = int(np.flatnonzero(index.numbers == number)[0])
        sample = dataset[int(index.starts[row] + frame)]
        np.testing.assert_array_equal(sample["segmentation"]["head"], labels)
        assert sample["segmentation"]["head"].dtype == np.uint8
    assert expected["seg_instance.head/labels"].max() > 0


def test_labels_and_skill_are_those_of_the_skill_under_way(root, index, expected):
    skills = read_annotations(index).skills
    dataset = dataset_of(index, skills)
    row = int(np.flatnonzero(index.numbers == 10)[0])
    annotation = json.loads((root / "annotations/task-0000/episode_00000010.json").read_text())
    ids = expected["observation.images.seg_instance_id.head"]
    mapping = json.loads(
        json.loads((root / "meta/episodes/task-0000/episode_00000010.json").read_text())["ins_id_mapping"]
    )
    seen = set()
    for n in np.flatnonzero(expected["episode_index"] == 10):
        frame = int(expected["index"][n])
        sample = dataset[int(index.starts[row]) + frame]
        kind = skills.kind_at(row, frame)
        wanted = np.zeros_like(ids[n], np.uint8)
        for label, name in enumerate(kind.objects, 1):
            members = [int(i) for i, path in mapping.items() if path.startswith(f"/World/scene_0/{name}/")]
            wanted[np.isin(ids[n], members)] = label
        np.testing.assert_array_equal(sample["segmentation"]["head"], wanted)
        assert sample["skill"] == kind.text
        seen.add(kind.objects)
        np.testing.assert_allclose(sample["depth"]["head"], expected["observation.images.depth.head"][n], atol=1e-5)
    assert {tuple(skill["object_id"][0]) for skill in annotation["skill_annotation"]} >= seen
    assert len(seen) > 1


def test_further_objects_and_objects_out_of_sight_are_background():
    instances = segmentation.Instances((0, 5, 6, 7), ("", "cup_1", "cup_1", "box_2"))
    assert instances.labels(["box_2", "door_3", "cup_1"]).tolist() == [0, 3, 3, 1]
    assert instances.labels([f"thing_{i}" for i in range(8)] + ["cup_1"]).tolist() == [0, 0, 0, 0]
    assert instances.labels(()).tolist() == [0, 0, 0, 0]


def test_segmentation_without_skills_or_ids_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match=r"5 of 5 episodes of .* have no annotations \(10, 20, 10010, 10020, 10030\)"):
        dataset_of(index, None)
    skills = first_skills(index)
    skills = dataclasses.replace(skills, offsets=np.array([0, 1, 2, 2, 3, 4]), kinds=(*skills.kinds, Kind("move")))
    with pytest.raises(ValueError, match=r"1 of 5 episodes of .* \(10010\); download annotations/"):
        dataset_of(index, skills)
    with pytest.raises(FileNotFoundError, match=r"no .*x.json, which tells what the colours of segmentation mean"):
        segmentation.read_instances(tmp_path / "x.json", "head")
    (tmp_path / "x.json").write_text('{"ins_id_mapping": "{}"}')
    with pytest.raises(ValueError, match=r"x.json does not tell the instances of camera 'head' \(KeyError"):
        segmentation.read_instances(tmp_path / "x.json", "head")


def test_runs_are_decoded_once_and_their_window_is_bounded(root, monkeypatch, caplog):
    index = open_index(root, make_config("2025", None).data)
    row = int(index.lengths.argmax())
    fed, feed = [], Decoder.feed
    monkeypatch.setattr(
        Decoder, "feed", lambda self, *args, **kwargs: fed.append(args[1]) or feed(self, *args, **kwargs)
    )
    frames = EpisodeFrames(index, 56)
    assert frames.sample_bytes == 3 * 56 * 56 * 3
    assert frames.span_bytes == 16 * (144 * 144 + 2 * 96 * 96)
    whole = [range(first, min(first + 25, 500)) for first in range(0, 500, 25)]
    for run in whole:
        for frame in reversed(run):
            frames.read(row, frame, run)
    assert len(fed) <= 3 * (500 + 8 + 8)  # two key frames; what follows the last one of a GOP in decoding is near
    small = EpisodeFrames(index, 56, window=WindowSize(16_000_000, 1))
    kept = {}
    for run in whole[:8]:
        for frame in (run[3], run[0], run[20]):
            kept[frame] = small.read(row, frame, run)
    for frame, pictures in kept.items():
        for one, other in zip(pictures, frames.read(row, frame), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not caplog.records
    tiny = EpisodeFrames(index, 56, window=WindowSize(frames.sample_bytes * 10, 3))
    tiny.read(row, 0, whole[0])
    for frame in whole[0][15:]:
        tiny.read(row, frame, whole[0])
    assert not caplog.records  # what was dropped is not asked for
    for frame in whole[0][1:15]:
        tiny.read(row, frame, whole[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "raise --data.window-gb" in caplog.text
