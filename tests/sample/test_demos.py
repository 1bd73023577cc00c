"""The data sets of the sample world are in the formats of the two releases, and read back as what was recorded."""

import dataclasses
import json
import pathlib
import shutil
import threading
import time

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import debug
from openpi_b1k.config.data import SAMPLE_TOKENIZER, DataConfig, SourceConfig, TransformConfig
from openpi_b1k.data.b1k import B1kDataset
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.prompts import PromptSource
from openpi_b1k.robots.r1pro import CAMERAS, PROPRIO_2025, PROPRIO_2026, r1pro
from openpi_b1k.sample import demos, scene
from openpi_b1k.sample.recording import goals_by_demo, record
from openpi_b1k.sample.render import SIZES
from openpi_b1k.sample.world import FPS, GOALS
from openpi_b1k.transforms.b1k import extract_state
from tests import sample_cases

NUM = sample_cases.NUM_DEMOS
HORIZON = 4
PROPRIOS = {"2025": PROPRIO_2025, "2026": PROPRIO_2026}
STATISTICS = {"min", "max", "mean", "std", "q01", "q99", "count"}

# As in meta/info.json of the two releases.
TEMPLATES = {
    "2025": {
        "data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet",
        "video_path": "videos/task-{episode_chunk:04d}/{video_key}/episode_{episode_index:08d}.mp4",
        "metainfo_path": "meta/episodes/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
        "annotation_path": "annotations/task-{episode_chunk:04d}/episode_{episode_index:08d}.json",
    },
    "2026": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
VIDEO_KEYS = {
    "2025": {name: f"observation.images.rgb.{name}" for name in SIZES},
    "2026": {
        "head": "observation.rgb.zed_link_camera_0",
        "left_wrist": "observation.rgb.left_realsense_link_camera_0",
        "right_wrist": "observation.rgb.right_realsense_link_camera_0",
    },
}
POSES = [f"observation.robot2cam_pose.{key.removeprefix('observation.rgb.')}" for key in VIDEO_KEYS["2026"].values()]
FEATURES = {
    "2025": {
        "action": ("float32", [23]),
        "timestamp": ("float64", [1]),
        "episode_index": ("int64", [1]),
        "index": ("int64", [1]),
        "observation.cam_rel_poses": ("float32", [21]),
        "observation.state": ("float32", [256]),
        "observation.task_info": ("float32", [None]),
    },
    "2026": {
        "action": ("float32", [23]),
        "observation.state": ("float32", [61]),
        **{pose: ("float32", [7]) for pose in POSES},
        "next.reward": ("float32", [1]),
        "next.terminated": ("bool", [1]),
        "next.truncated": ("bool", [1]),
        "timestamp": ("float32", [1]),
        "frame_index": ("int64", [1]),
        "episode_index": ("int64", [1]),
        "index": ("int64", [1]),
        "task_index": ("int64", [1]),
    },
}
COLUMN_TYPES = {"float32": "float", "float64": "double", "int64": "int64", "bool": "bool"}


@pytest.fixture(params=["2025", "2026"])
def generation(request):
    return request.param


@pytest.fixture
def root(generation, sample_root):
    return sample_root(generation)


@pytest.fixture(scope="module")
def recordings():
    """Returns a function from a generation to its demonstrations in the data set's order, recorded anew."""
    made = {}

    def of(generation):
        if generation not in made:
            made[generation] = [record(i, goal, PROPRIOS[generation]) for goal, i in goals_by_demo(NUM)]
        return made[generation]

    return of


def data_config(generation):
    transforms = TransformConfig(tokenizer=SAMPLE_TOKENIZER)
    return DataConfig(source="sample", generation=generation, sample_demos=NUM, transforms=transforms)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def open_dataset(root, config):
    """Returns all demonstrations, each whole, as the data room reads them."""
    index = open_index(root, config)
    columns = Columns(index, r1pro("like_action"))
    columns.ensure()
    skills = read_annotations(index).skills.of(index)
    return B1kDataset(index, columns, EpisodeFrames(index), skills, PromptSource(index, None), HORIZON)


@pytest.mark.parametrize(("generation", "extra"), [("2025", ("depth", "segmentation")), ("2026", ("depth",))])
def test_other_modalities_read_back_as_they_were_recorded(sample_root, generation, extra):
    config = dataclasses.replace(data_config(generation), modalities=("rgb", *extra))
    dataset = open_dataset(sample_root(generation, *extra), config)
    for row, (goal, instance) in enumerate(goals_by_demo(NUM)):
        recording = record(instance, goal, PROPRIOS[generation], ("rgb", *extra))
        sample = dataset[int(dataset.index.starts[row]) + 5]
        assert list(sample["depth"]) == ["head"]
        errors = np.abs(sample["depth"]["head"] - recording.depth["head"][5])
        assert errors.mean() < {"2025": 0.012, "2026": 0.002}[generation]  # 221 levels survive in 10 bits
        if "segmentation" in extra:
            meshes = [scene.CAPS[goal.button], scene.RIMS[goal.button]]
            is_button = np.isin(recording.instances["head"][5], meshes)
            labels = sample["segmentation"]["head"]
            assert set(np.unique(labels)) == {0, 1}
            assert ((labels == 1) != is_button).mean() < 0.02
            assert sample["skill"].endswith(f"{goal.button} button")


def test_it_reads_back_as_it_was_recorded(generation, root, recordings):
    dataset = open_dataset(root, data_config(generation))
    index = dataset.index
    made, robot = recordings(generation), r1pro("like_action")
    assert index.lengths.tolist() == [recording.length for recording in made]
    assert index.fps == FPS
    errors = []
    for row, recording in enumerate(made):
        last = recording.length - 1
        for frame in (0, 1, 8, recording.pressed_at, last):
            sample = dataset[int(index.starts[row]) + frame]
            state = extract_state(robot, sample["proprio"])
            np.testing.assert_array_equal(state, extract_state(robot, recording.proprio[frame]))
            steps = np.minimum(frame + np.arange(HORIZON), last)
            np.testing.assert_array_equal(sample["actions"], recording.actions[steps])
            np.testing.assert_array_equal(sample["is_pad"], frame + np.arange(HORIZON) > last)
            assert (sample["prompt"], sample["task"]) == (recording.goal.prompt, recording.goal.task_index)
            for camera, image in sample["images"].items():
                errors.append(np.abs(image.astype(int) - recording.frames[camera][frame]).mean())
    assert len(errors) == NUM * 5 * 3
    assert np.mean(errors) < 6  # what the codec loses, half of it colour, which has half the resolution
    assert max(errors) < 10


def test_frames_are_not_mistaken_for_their_neighbours(generation, root, recordings):
    dataset = open_dataset(root, data_config(generation))
    index = dataset.index
    for row, recording in enumerate(recordings(generation)):
        frames = recording.frames["head"].astype(int)
        image = dataset[int(index.starts[row]) + 5]["images"]["head"]
        assert np.abs(frames - image).mean(axis=(1, 2, 3)).argmin() == 5


def test_info_declares_the_releases_layout(generation, root, recordings):
    info = json.loads((root / "meta/info.json").read_text())
    made = recordings(generation)
    assert info["codebase_version"] == {"2025": "v2.1", "2026": "v3.0"}[generation]
    assert info["chunks_size"] == {"2025": 10_000, "2026": 1000}[generation]
    assert (info["robot_type"], info["fps"], info["total_tasks"]) == ("R1Pro", 30, 4)
    assert (info["total_episodes"], info["splits"]) == (NUM, {"train": f"0:{NUM}"})
    assert info["total_frames"] == sum(recording.length for recording in made)
    assert {name: info.get(name) for name in TEMPLATES[generation]} == TEMPLATES[generation]
    features = info["features"]
    columns = {name: (entry["dtype"], entry["shape"]) for name, entry in features.items() if entry["dtype"] != "video"}
    assert columns == FEATURES[generation]
    videos = {name: entry for name, entry in features.items() if entry["dtype"] == "video"}
    assert set(videos) == set(VIDEO_KEYS[generation].values())
    for camera, key in VIDEO_KEYS[generation].items():
        assert videos[key]["shape"] == [SIZES[camera], SIZES[camera], 3]
        assert videos[key]["names"] == ["height", "width", "rgb"]
        assert videos[key]["info"]["video.pix_fmt"] == "yuv420p"
        assert videos[key]["info"]["video.fps"] == 30.0
    for camera in CAMERAS:
        assert SIZES[camera.name] * CAMERAS[0].size == SIZES["head"] * camera.size


def test_columns_have_the_declared_types(generation, root):
    for path in root.glob("data/**/*.parquet"):
        schema = pq.read_schema(path)
        extra = {"2025": {"task_index"}, "2026": set()}[generation]  # of 2025: a column that is no feature
        assert set(schema.names) == set(FEATURES[generation]) | extra
        for name, (dtype, shape) in FEATURES[generation].items():
            is_vector = shape != [1]
            found = schema.field(name).type
            assert str(found.value_type if is_vector else found) == COLUMN_TYPES[dtype]


def test_files_of_2025(sample_root, recordings):
    """One of each per episode, under its sparse number: task * 10000 + instance * 10."""
    numbers = [recording.goal.task_index * 10_000 + recording.instance * 10 for recording in recordings("2025")]
    assert numbers[:3] == [10, 20, 10010]
    expected = [f"meta/{name}" for name in ("info.json", "tasks.jsonl", "episodes.jsonl", "episodes_stats.jsonl")]
    for number in numbers:
        address = {"episode_chunk": number // 10_000, "episode_index": number}
        for name, template in TEMPLATES["2025"].items():
            keys = VIDEO_KEYS["2025"].values() if name == "video_path" else [""]
            expected += [template.format(video_key=key, **address) for key in keys]
    assert files_of(sample_root("2025")) == sorted(expected)


def test_files_of_2026(sample_root):
    """Chunk = task; several episodes in one file."""
    expected = [f"meta/{name}" for name in ("info.json", "stats.json", "tasks.jsonl", "tasks.parquet")]
    for task in range(4):
        expected += [f"meta/episodes/chunk-{task:03d}/file-000.parquet", f"data/chunk-{task:03d}/file-000.parquet"]
        expected += [f"videos/{key}/chunk-{task:03d}/file-000.mp4" for key in VIDEO_KEYS["2026"].values()]
        expected += [f"annotations/task-{task:04d}/episode_{task * 10_000 + i * 10:08d}.json" for i in (1, 2)]
    assert files_of(sample_root("2026")) == sorted(expected)


def test_rows_of_2025(sample_root, recordings):
    recording = recordings("2025")[2]
    table = pq.read_table(sample_root("2025") / "data/task-0001/episode_00010010.parquet").to_pydict()
    assert table["index"] == list(range(recording.length))  # counted per episode
    assert set(table["episode_index"]) == {10010}
    assert set(table["task_index"]) == {1}
    assert table["timestamp"] == [i / 30 for i in range(recording.length)]
    hand = np.array(table["observation.cam_rel_poses"], np.float32)[:, :3]
    np.testing.assert_array_equal(hand, recording.proprio[:, PROPRIO_2025.slice("eef_left_pos")])


def test_rows_of_2026_are_numbered_over_the_whole_data_set(sample_root, recordings):
    root, made = sample_root("2026"), recordings("2026")
    tables = [pq.read_table(path).to_pydict() for path in sorted(root.glob("data/**/*.parquet"))]

    def column(name):
        return [value for table in tables for value in table[name]]

    lengths = [recording.length for recording in made]
    assert column("index") == list(range(sum(lengths)))
    assert column("episode_index") == np.repeat(np.arange(NUM), lengths).tolist()
    assert column("task_index") == np.repeat(np.arange(NUM) // 2, lengths).tolist()
    assert column("frame_index") == [i for length in lengths for i in range(length)]
    np.testing.assert_array_equal(column("timestamp"), [np.float32(i / 30) for n in lengths for i in range(n)])
    assert column("next.terminated") == [i == n - 1 for n in lengths for i in range(n)]
    rewards = [float(i >= recording.pressed_at) for recording in made for i in range(recording.length)]
    assert column("next.reward") == rewards


def test_episode_table_of_2026(sample_root, recordings):
    root = sample_root("2026")
    rows = [row for path in sorted(root.glob("meta/episodes/**/*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["episode_index"] for row in rows] == list(range(NUM))  # dense
    first_row = 0
    for row, recording in zip(rows, recordings("2026"), strict=True):
        task = recording.goal.task_index
        assert row["tasks"] == [recording.goal.task_name]  # the name; the sentence is in tasks.jsonl
        assert (row["task_index"], row["data/chunk_index"], row["data/file_index"]) == (task, task, 0)
        assert (row["dataset_from_index"], row["length"]) == (first_row, recording.length)
        first_row += recording.length
        assert row["dataset_to_index"] == first_row
        assert (row["demo_index_within_task"], row["task_instance_id"]) == (recording.instance - 1, recording.instance)
        assert row["raw_episode_id"] == task * 10_000 + recording.instance * 10
        assert (root / row["annotation_path"]).is_file()
        for key in VIDEO_KEYS["2026"].values():
            start, stop = row[f"videos/{key}/from_timestamp"] * 30, row[f"videos/{key}/to_timestamp"] * 30
            assert round(stop - start) == recording.length
            assert round(start) == (0 if recording.instance == 1 else rows[row["episode_index"] - 1]["length"])


def test_tasks_and_prompts(generation, root, recordings):
    lines = read_lines(root / "meta/tasks.jsonl")
    assert lines == [{"task_index": g.task_index, "task_name": g.task_name, "task": g.prompt} for g in GOALS]
    if generation == "2026":
        table = pq.read_table(root / "meta/tasks.parquet").to_pydict()
        assert table == {"task_index": [0, 1, 2, 3], "__index_level_0__": [goal.task_name for goal in GOALS]}
    else:
        episodes = read_lines(root / "meta/episodes.jsonl")
        assert [line["tasks"] for line in episodes] == [[one.goal.prompt] for one in recordings("2025")]
        assert [line["length"] for line in episodes] == [one.length for one in recordings("2025")]


def test_statistics(generation, root, recordings):
    made = recordings(generation)
    if generation == "2025":
        lines = read_lines(root / "meta/episodes_stats.jsonl")
        stats, actions = lines[4]["stats"], made[4].actions
        assert set(stats) == {"action", "observation.state", "observation.cam_rel_poses"}
    else:
        stats, actions = json.loads((root / "meta/stats.json").read_text()), np.concatenate([r.actions for r in made])
        assert set(stats) == {"action", "observation.state"}
    for values in stats.values():
        assert set(values) == STATISTICS
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0, dtype=np.float64), atol=1e-9)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0), atol=1e-6)
    assert stats["action"]["count"] == [len(actions)]


def test_annotations_split_the_episode_at_the_press(generation, root, recordings):
    files = sorted(root.glob("annotations/**/*.json"))
    for path, recording in zip(files, recordings(generation), strict=True):
        content = json.loads(path.read_text())
        assert content["task_name"] == recording.goal.task_name.replace("_", " ")
        assert content["meta_data"]["task_duration"] == recording.length
        move, press = content["skill_annotation"]
        assert (move["skill_description"], press["skill_description"]) == (["move to"], ["press"])
        assert move["frame_duration"] == [0, press["frame_duration"][0]]
        assert press["frame_duration"][0] <= recording.pressed_at < press["frame_duration"][1] == recording.length


def packets(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("hevc", "yuv420p")
        return [packet for packet in container.demux(stream) if packet.size]


def test_videos_of_2026_have_a_key_frame_every_8_and_no_b_frames(sample_root, recordings):
    made = recordings("2026")
    for task, key in [(0, VIDEO_KEYS["2026"]["head"]), (3, VIDEO_KEYS["2026"]["left_wrist"])]:
        found = packets(sample_root("2026") / f"videos/{key}/chunk-{task:03d}/file-000.mp4")
        assert len(found) == sum(recording.length for recording in made if recording.goal.task_index == task)
        assert [packet.is_keyframe for packet in found] == [i % 8 == 0 for i in range(len(found))]
        assert all(packet.dts == packet.pts for packet in found)


def test_videos_of_2025_have_one_key_frame_and_b_frames(sample_root, recordings):
    recording = recordings("2025")[0]
    path = "videos/task-0000/observation.images.rgb.head/episode_00000010.mp4"
    found = packets(sample_root("2025") / path)
    assert len(found) == recording.length < 250
    assert [i for i, packet in enumerate(found) if packet.is_keyframe] == [0]
    assert any(packet.dts != packet.pts for packet in found)


def test_a_file_takes_some_episodes_of_one_goal():
    files = demos.group_into_files(200)
    assert [(goal.task_index, len(instances), index) for goal, instances, index in files[:4]] == [
        (0, 20, 0), (0, 20, 1), (0, 10, 2), (1, 20, 0),
    ]  # fmt: skip
    flat = [(goal, instance) for goal, instances, _ in files for instance in instances]
    assert flat == goals_by_demo(200)


def test_made_by_processes_once_and_the_same(sample_root, monkeypatch):
    """`make` on a pool of processes gives the same bytes as this process, and is not done again."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    root = demos.make("2026", NUM)
    files = files_of(root)
    assert files == files_of(sample_root("2026"))
    assert all((root / name).read_bytes() == (sample_root("2026") / name).read_bytes() for name in files)
    monkeypatch.setattr(demos, "write", forbidden)
    assert demos.make("2026", NUM) == root
    with pytest.raises(AssertionError, match="made again"):
        demos.make("2026", NUM + 1)
    with pytest.raises(AssertionError, match="made again"):
        demos.make("2025", NUM)


def forbidden(*args, **kwargs):
    raise AssertionError("made again")


def test_a_data_set_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path))

    def write(root, generation, num_demos, modalities):
        (root / "meta").mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(demos, "write", write)
    with pytest.raises(OSError, match="disk full"):
        demos.make("2025", 1)
    assert [path.suffix for path in (tmp_path / "sample").iterdir()] == [".lock"]


def test_other_code_makes_other_data(monkeypatch, tmp_path):
    before = demos.code_version()
    assert before == demos.code_version()
    package = pathlib.Path(demos.__file__).parents[1]
    for room in ("sample", "robots"):
        shutil.copytree(package / room, tmp_path / room)
    shutil.copy(package / "lerobot_format.py", tmp_path)
    monkeypatch.setattr(demos, "__file__", str(tmp_path / "sample" / "demos.py"))
    assert demos.code_version() == before
    (tmp_path / "sample" / "world.py").write_text("# slower arms\n")
    slower = demos.code_version()
    (tmp_path / "robots" / "r1pro.py").write_text("# another layout\n")
    other_robot = demos.code_version()
    (tmp_path / "lerobot_format.py").write_text("# other columns\n")
    assert len({before, slower, other_robot, demos.code_version()}) == 4


def test_a_config_is_given_its_data(monkeypatch, tmp_path):
    config = dataclasses.replace(debug.CONFIG, data=data_config("2026"))
    monkeypatch.setattr(demos, "make", lambda *described: tmp_path / repr(described))
    assert demos.ensure(config).data.root == str(tmp_path / f"('2026', {NUM}, ('rgb',))")
    more = SourceConfig(name="more", source="sample", sample_demos=3, generation="2025")
    there = SourceConfig(name="there", source="b1k", root="theirs")
    mixed = dataclasses.replace(config, data=dataclasses.replace(config.data, extra_sources=(more, there)))
    roots = [source.root for source in demos.ensure(mixed).data.sources]
    assert roots == [str(tmp_path / f"('2026', {NUM}, ('rgb',))"), str(tmp_path / "('2025', 3, ('rgb',))"), "theirs"]
    named = dataclasses.replace(config, data=dataclasses.replace(config.data, root="mine"))
    assert demos.ensure(named) == named


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lerobot decodes through a deprecated module
def test_lerobot_reads_2026_as_it_was_recorded(sample_root, recordings):
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs --extra lerobot")
    steps = {"action": [i / FPS for i in range(HORIZON)]}
    dataset = lerobot.LeRobotDataset(
        "local/sample", root=sample_root("2026"), delta_timestamps=steps, video_backend="pyav"
    )
    made = recordings("2026")
    assert len(dataset) == sum(recording.length for recording in made)
    start = 0
    for recording in made:
        for frame in (0, 9, recording.length - 1):
            item = dataset[start + frame]
            np.testing.assert_array_equal(item["observation.state"], recording.proprio[frame])
            rows = np.minimum(frame + np.arange(HORIZON), recording.length - 1)
            np.testing.assert_array_equal(item["action"], recording.actions[rows])
            np.testing.assert_array_equal(item["action_is_pad"], frame + np.arange(HORIZON) >= recording.length)
            assert item["task"] == recording.goal.task_name
            for camera, key in VIDEO_KEYS["2026"].items():
                image = item[key].numpy().transpose(1, 2, 0) * 255
                assert np.abs(image - recording.frames[camera][frame]).mean() < 10
        start += recording.length


def test_of_several_that_want_a_data_set_one_makes_it_and_the_others_wait(tmp_path):
    root, made = tmp_path / "cache" / "data", []

    def write(partial):
        made.append(threading.current_thread().name)
        partial.mkdir()
        time.sleep(0.3)
        (partial / "last").touch()

    def make():
        demos.make_once(root, write)
        seen.append((root / "last").exists())

    seen = []
    (tmp_path / "cache" / "data.partial" / "of a killed process").mkdir(parents=True)
    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), seen) == (1, [True] * 3)
    assert sorted(path.name for path in root.iterdir()) == ["last"]
    assert not root.with_name("data.partial").exists()
