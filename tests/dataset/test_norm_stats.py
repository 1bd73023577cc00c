"""Statistics against NumPy over every frame and every step, as the pipeline makes them."""

import dataclasses
import json

import numpy as np
import pytest

from openpi_b1k.config.data import TransformConfig
from openpi_b1k.data import norm_stats
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.data.norm_stats import StatsSource, choose, load_or_compute, load_or_pool, merge_parts, write_part
from openpi_b1k.data.shards import Shard, parse_shard
from openpi_b1k.data.statistics import compute, counting, distribution
from openpi_b1k.data.statistics.compute import summarise
from openpi_b1k.data.statistics.report import described, table
from openpi_b1k.data.statistics.summary import Summary, of_rows
from openpi_b1k.robots.r1pro import PROPRIO_IN_USE, r1pro
from openpi_b1k.transforms.normalize import FieldStats, NormStats
from openpi_b1k.transforms.pipeline import statistics_pipeline
from tests.dataset.dataset_cases import make_config

STATISTICS = ("mean", "std", "q01", "q99")
DELTAS = ("torso", "left_arm", "right_arm")
ROBOT = r1pro("like_action")


def oracle(rows):
    rows = np.asarray(rows, np.float64)
    q01, q99 = np.percentile(rows, [1, 99], axis=0)
    return {"mean": rows.mean(0), "std": rows.std(0), "q01": q01, "q99": q99}


def loops(index, transforms, robot, horizon):
    """Returns every state [n, s], and for each step of the chunk its real actions, as the pipeline gives them."""
    columns, pipeline = Columns(index, robot), statistics_pipeline(transforms, robot)
    states, steps = [], [[] for _ in range(horizon)]
    for row in range(len(index.numbers)):
        proprio, actions = columns.episode(row)
        for frame in range(index.begins[row], index.ends[row]):
            sample = {"proprio": proprio[frame], "actions": actions[frame : min(frame + horizon, index.ends[row])]}
            seen = pipeline(sample)
            states.append(seen["state"])
            for step, action in enumerate(seen["actions"]):
                steps[step].append(action)
    return states, steps


@pytest.fixture
def index(root, config):
    """A trimmed training split: windows are not whole episodes."""
    index = open_index(root, config.data)
    return dataclasses.replace(index, begins=index.begins + 2, ends=index.ends - 3)


ABSOLUTE = TransformConfig()


def source(index, transforms=ABSOLUTE, weight=1.0):
    robot = r1pro(transforms.state_layout)
    return StatsSource(index, Columns(index, robot), transforms, robot, weight)


def assert_close(stats, expected, **tolerance):
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(stats, name), expected[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("delta_fields", [(), DELTAS])
@pytest.mark.parametrize("block", [30, 16_384])
def test_statistics_are_those_of_every_real_step(index, generation, delta_fields, block, monkeypatch):
    monkeypatch.setattr(counting, "BLOCK_FRAMES", block)
    monkeypatch.setattr(distribution, "EXACT_VALUES", 10**6)
    layout = "grippers_last" if generation == "2025" else "like_action"
    transforms, robot = TransformConfig(state_layout=layout, delta_fields=delta_fields), r1pro(layout)
    stats = summarise(index, robot, transforms, 40).result()  # the shortest window is shorter than the chunk
    states, steps = loops(index, transforms, robot, 40)
    assert_close(stats.state, oracle(states), rtol=1e-9, atol=1e-9)
    assert_close(stats.actions, oracle(np.concatenate([step for step in steps if step])), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("delta_fields", [(), DELTAS])
def test_quantiles_of_bins_are_within_a_thousandth_of_the_range(index, delta_fields, monkeypatch):
    monkeypatch.setattr(distribution, "EXACT_VALUES", 50)
    transforms = TransformConfig(delta_fields=delta_fields)
    stats = summarise(index, ROBOT, transforms, 8).result()
    rows = np.concatenate(loops(index, transforms, ROBOT, 8)[1])
    true, spread = oracle(rows), np.ptp(rows.astype(np.float64), axis=0)
    # Where the truth is interpolated between two values, any number between them is as good.
    around = [np.sort(rows, axis=0)[[int(q * (len(rows) - 1)), int(q * (len(rows) - 1)) + 1]] for q in (0.01, 0.99)]
    for name, (below, above) in zip(("q01", "q99"), around, strict=True):
        value = getattr(stats.actions, name)
        assert (value >= below - 1e-3 * spread).all()
        assert (value <= above + 1e-3 * spread).all()
    np.testing.assert_allclose(stats.actions.mean, true["mean"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(stats.actions.std, true["std"], rtol=1e-8, atol=1e-8)


def test_a_stride_over_steps_leaves_moments_exact(index):
    transforms = TransformConfig(delta_fields=DELTAS)
    every, some = (counting.Counting(ROBOT, transforms, 16, stride) for stride in (1, 4))
    columns = Columns(index, ROBOT)
    windows = [counting.Window(*columns.episode(row)) for row in range(len(index.numbers))]
    summaries = [each.summarise(windows) for each in (every, some)]
    one, other = (summary.result().actions for summary in summaries)
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.std, other.std)
    assert len(summaries[1].actions[0][5].values) < len(summaries[0].actions[0][5].values) / 3


def test_quantiles_of_a_ninth_are_those_of_all_within_a_thousandth_of_the_range():
    """Of more frames than are all counted: steady motion, bursts, rests, and a hum of about the stride's period."""
    rng = np.random.default_rng(0)
    windows, time, where = [], np.arange(37_000) / 30, ROBOT.action.slice("torso")
    for _ in range(30):
        proprio = np.zeros((len(time), PROPRIO_IN_USE.size), np.float32)
        actions = np.zeros((len(time), ROBOT.action.size), np.float32)
        torso = proprio[:, PROPRIO_IN_USE.slice(dict(ROBOT.sources)["torso"].proprio_field)]
        torso[:, 0] = np.cumsum(rng.standard_normal(len(time))) * 0.01
        torso[:, 1] = np.cumsum(np.repeat(rng.standard_t(3, 370), 100)) * 1e-3
        torso[:, 2] = np.sin(rng.uniform(0.1, 1) * time) * (np.sin(0.02 * time + rng.uniform(0, 6)) > 0.5)
        torso[:, 3] = np.sin(6.3 * np.arange(len(time)) / compute.STRIDE) + 0.01 * rng.standard_normal(len(time))
        actions[:, where] = np.roll(torso, -3, axis=0)
        windows.append(counting.Window(proprio, actions))
    assert sum(len(window.actions) for window in windows) > compute.FRAMES_ALL_COUNTED
    transforms = TransformConfig(delta_fields=("torso",))
    all_counted, some = (
        counting.Counting(ROBOT, transforms, 32, stride).summarise(windows) for stride in (1, compute.STRIDE)
    )
    for every, ninth in zip(all_counted.actions[0][where], some.actions[0][where], strict=True):
        error = np.subtract(every.quantiles(), ninth.quantiles())
        assert (np.abs(error) < 1e-3 * (every.high - every.low)).all()
        assert ninth.counts.sum() == pytest.approx(every.counts.sum() / compute.STRIDE, rel=1e-3)
        assert (ninth.mean, ninth.squares) == (every.mean, every.squares)


def test_steps_may_have_statistics_of_their_own(index):
    transforms = TransformConfig(delta_fields=DELTAS, per_step_norm=True)
    stats = summarise(index, ROBOT, transforms, 8).result()
    assert stats.actions.mean.shape == (8, 23)
    _, steps = loops(index, transforms, ROBOT, 8)
    for step in range(8):
        ours = FieldStats(*(getattr(stats.actions, name)[step] for name in STATISTICS))
        assert_close(ours, oracle(steps[step]), rtol=1e-9, atol=1e-9)
    again = NormStats.from_json(stats.to_json())
    np.testing.assert_array_equal(again.for_robot(ROBOT).actions.q99, stats.actions.q99)
    assert "actions.torso[0] step 7" in table(stats, ROBOT, "quantile")
    longest = int((index.ends - index.begins).max())
    with pytest.raises(ValueError, match=rf"no statistics of action step {longest}: .*per-step-norm False"):
        summarise(index, ROBOT, transforms, longest + 1).result()


@pytest.mark.parametrize("exact", [50, 10**6])
def test_shards_and_processes_make_the_whole(index, exact, monkeypatch):
    monkeypatch.setattr(distribution, "EXACT_VALUES", exact)
    transforms = TransformConfig(delta_fields=DELTAS)
    whole = summarise(index, ROBOT, transforms, 8)
    parts = [summarise(index, ROBOT, transforms, 8, Shard(i, 3)) for i in (2, 0, 1)]
    assert sum(part.frames for part in parts) == whole.frames == len(index)
    for part in parts[1:]:
        parts[0].merge(part)
    one, other = whole.result(), parts[0].result()
    for field in ("state", "actions"):
        assert_close(getattr(one, field), vars(getattr(other, field)), rtol=1e-12, atol=1e-15)


def test_threads_change_nothing(index, monkeypatch):
    monkeypatch.setattr(compute, "FRAMES_PER_TASK", 100)
    one = summarise(index, ROBOT, TransformConfig(), 8, num_threads=1).result()
    many = summarise(index, ROBOT, TransformConfig(), 8, num_threads=5).result()
    assert one.to_json() == many.to_json()


def test_quantiles_are_nearer_the_truth_than_openpis(data_dir):
    with np.load(data_dir / "b1k_transforms.npz") as file:
        reference = dict(file)
    samples = reference["norm/in/samples"]
    ours, truth = of_rows(samples), oracle(samples)
    for name in ("q01", "q99"):
        error = np.abs(getattr(ours, name) - truth[name])
        assert (error <= np.abs(reference[f"norm/out/{name}"] - truth[name])).all()
    assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="no statistics of no frames"):
        Summary.empty(23, 23, 1).result()


def test_statistics_are_kept_and_read(index, monkeypatch):
    given = source(index)
    stats, path = load_or_compute(given, 4)
    assert json.loads(path.read_text()).keys() == {"norm_stats"}
    monkeypatch.setattr(norm_stats, "summarise", None)  # the second time nothing is computed
    again, _ = load_or_compute(given, 4)
    assert again.to_json() == stats.to_json()
    path.unlink()
    again, _ = load_or_compute(given, 4)  # from the summary
    assert again.to_json() == stats.to_json()


def test_parts_are_merged_when_all_are_there(index, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path))
    given = source(index, TransformConfig(delta_fields=DELTAS))
    with pytest.raises(FileNotFoundError, match="--shard 0/N"):
        merge_parts(given, 8)
    write_part(given, 8, Shard(0, 2))
    with pytest.raises(FileNotFoundError, match=r"not complete; .* --shard 1/2"):
        merge_parts(given, 8)
    write_part(given, 8, Shard(1, 2))
    merged, _ = merge_parts(given, 8)
    whole = summarise(index, ROBOT, given.transforms, 8).result()
    assert_close(merged.actions, vars(whole.actions), rtol=1e-12, atol=1e-15)
    for text in ("2/2", "-1/2", "1", "a/b"):
        with pytest.raises(ValueError, match="I/N"):
            parse_shard(text)


def test_what_changes_the_statistics_changes_their_place(data_dir):
    index = open_index(data_dir / "lerobot_v30", make_config("2026", None).data)
    transforms = TransformConfig()
    places = [
        source(index).place(16),
        source(index.take(np.arange(3))).place(16),
        source(index).place(8),
        *(
            source(index, dataclasses.replace(transforms, **change)).place(16)
            for change in ({"state_layout": "grippers_last"}, {"delta_fields": ("torso",)}, {"per_step_norm": True})
        ),
    ]
    assert len({place.name for place in places}) == len(places)
    for same in ({"clip_normalized": None}, {"normalization": "zscore"}):
        assert source(index, dataclasses.replace(transforms, **same)).place(16) == places[0]


def test_a_mixture_counts_its_sources_by_weight(index):
    first, second = index.take(np.arange(1)), index.take(np.arange(1, len(index.numbers)))
    stats, _ = load_or_pool([source(first, weight=3.0), source(second, weight=1.0)], 4)
    rows = [np.array(loops(part, TransformConfig(), ROBOT, 4)[0], np.float64) for part in (first, second)]
    shares = np.concatenate([np.full(len(part), w / len(part)) for part, w in zip(rows, (0.75, 0.25), strict=True)])
    rows = np.concatenate(rows)
    mean = shares @ rows
    np.testing.assert_allclose(stats.state.mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stats.state.std, np.sqrt(shares @ (rows - mean) ** 2), rtol=1e-9, atol=1e-12)
    for entry, (q01, q99) in enumerate(zip(stats.state.q01, stats.state.q99, strict=True)):
        order = np.argsort(rows[:, entry])
        ends = np.cumsum(shares[order])
        for value, share in ((q01, 0.01), (q99, 0.99)):  # the rank is right to a frame's share
            least, greatest = np.searchsorted(ends, [share - 1.5 / len(rows), share + 1.5 / len(rows)])
            assert rows[order[max(least - 1, 0)], entry] - 1e-9 <= value
            assert value <= rows[order[min(greatest + 1, len(rows) - 1)], entry] + 1e-9
    alone, _ = load_or_compute(source(index), 4)
    parts = [source(part, weight=len(part)) for part in (first, second)]
    together, _ = load_or_pool(parts, 4)  # weighted by their frames, two halves are the whole
    assert_close(together.actions, vars(alone.actions), rtol=1e-9, atol=1e-9)
    other = source(second, TransformConfig(delta_fields=DELTAS))
    with pytest.raises(ValueError, match=r"differ in transforms.delta_fields .*--data.norm-stats-of own"):
        load_or_pool([source(first), other], 4)


def stats_file(path, size=23, value=1.0):
    field = FieldStats(*(np.full(size, x) for x in (0.0, value, -1.0, 1.0)))
    padded = FieldStats(
        *(np.pad(getattr(field, name), (0, 32 - size)) for name in STATISTICS)
    )  # as openpi-comet writes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NormStats(padded, padded).to_json())
    return path


def test_statistics_of_a_path_or_a_checkpoint_are_chosen(index, tmp_path):
    config = dataclasses.replace(make_config("2026", None))
    given = [source(index), source(index)]
    checkpoint = tmp_path / "7"
    path = stats_file(checkpoint / "assets/behavior-1k/2025-challenge-demos/norm_stats.json", value=3.0)
    for change in (
        {"norm_stats": str(path)},
        {"norm_stats": str(path.parent)},
        {"norm_stats": str(checkpoint)},
        {"norm_stats": f"{checkpoint}/params"},
        {"norm_stats": "checkpoint", "weights": f"{checkpoint}/params"},
        {"norm_stats": "checkpoint", "weights": str(checkpoint)},
    ):
        chosen = choose(dataclasses.replace(config, **change), given)
        assert [stats.for_robot(ROBOT).state.std[0] for stats in chosen] == [3.0, 3.0]
    stats_file(checkpoint / "assets/other/norm_stats.json")
    with pytest.raises(ValueError, match=r"several data sets: .*other.*; give one of them with --norm-stats"):
        choose(dataclasses.replace(config, norm_stats=str(checkpoint)), given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no norm_stats.json in .*empty"):
        choose(dataclasses.replace(config, norm_stats=str(tmp_path / "empty")), given)
    with pytest.raises(ValueError, match="those of --weights, which is none"):
        choose(dataclasses.replace(config, norm_stats="checkpoint"), given)
    small = stats_file(tmp_path / "small.json", size=32)
    with pytest.raises(ValueError, match=r"small.json: norm stats of state must have 23 entries"):
        choose(dataclasses.replace(config, norm_stats=str(small)), given)
    steps = FieldStats(*(np.zeros((4, 23)) for _ in STATISTICS))
    (tmp_path / "steps.json").write_text(NormStats(FieldStats(*(np.zeros(23) for _ in STATISTICS)), steps).to_json())
    with pytest.raises(ValueError, match=r"statistics of 4 action steps; --model.action-horizon is 16"):
        choose(dataclasses.replace(config, norm_stats=str(tmp_path / "steps.json")), given)


def test_data_statistics_are_own_or_pooled(index):
    config = make_config("2026", None)
    given = [source(index.take(np.arange(1))), source(index)]
    own = choose(dataclasses.replace(config, data=dataclasses.replace(config.data, norm_stats_of="own")), given)
    pooled = choose(config, given)
    assert own[0].to_json() != own[1].to_json()
    assert pooled[0] is pooled[1]
    assert choose(config, given[:1])[0].to_json() == own[0].to_json()


def test_table_names_every_entry_and_those_that_hardly_vary(index):
    stats, _ = load_or_compute(source(index), 4)
    lines = described(stats, ROBOT, "quantile").splitlines()
    assert len(lines) == 1 + 23 + 23 + 1
    assert lines[0].split() == ["mean", "std", "q01", "q99"]
    name, mean, *_ = lines[1 + 23 + 3].split()
    assert name == "actions.torso[0]"
    assert float(mean) == pytest.approx(stats.actions.mean[3], rel=1e-3)
    assert lines[-1].startswith("* nearly constant, so not divided by its spread: ")
