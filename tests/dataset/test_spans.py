import dataclasses
import pickle

import numpy as np
import pytest

from openpi_b1k.data.index.annotations import read_annotations
from openpi_b1k.data.order.spans import span_table
from tests.dataset.annotation_cases import make_index, write_annotation

SKILLS = [("move to", [0, 400], [["radio_89"]]), ("press", [400, 640], [["radio_89"]]), ("hold", [640, 1000], [])]
SKILL_OF = {**dict.fromkeys(range(400), "move to"), **dict.fromkeys(range(400, 640), "press")}


@pytest.fixture
def index(tmp_path):
    """Two episodes of 1000 and 620 frames, trimmed to [30, 970) and [0, 601)."""
    for recording in (10, 20):
        write_annotation(tmp_path, recording, SKILLS)
    made = make_index(tmp_path, {10: 1000, 20: 620})
    return dataclasses.replace(made, begins=np.array([30, 0]), ends=np.array([970, 601]))


@pytest.fixture
def skills(index):
    return read_annotations(index).skills


def frames_of(table, epoch=0):
    """Every (row, frame) of an epoch, in the order of spans."""
    return [(int(table.row[span]), int(frame)) for span in range(len(table)) for frame in table.samples(span, epoch)]


def weight_of(frame, weights):
    name = SKILL_OF.get(frame, "hold")
    return weights.get(name, weights.get("all", 1.0))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("longest", [1, 7, 250, 5000])
def test_spans_are_the_windows_in_order(index, longest, aligned):
    table = span_table(index, None, {}, longest, aligned, seed=0)
    assert frames_of(table) == [(0, f) for f in range(30, 970)] + [(1, f) for f in range(601)]
    assert table.num_samples == len(index) == len(frames_of(table))
    lengths = table.stop - table.first
    assert (lengths >= 1).all()
    assert (lengths <= longest).all()
    assert (table.count == lengths).all()


def test_aligned_spans_are_cut_at_multiples_from_frame_0(index):
    table = span_table(index, None, {}, 250, True, seed=0)
    cuts = list(zip(table.row.tolist(), table.first.tolist(), table.stop.tolist(), strict=True))
    assert cuts == [
        (0, 30, 250), (0, 250, 500), (0, 500, 750), (0, 750, 970), (1, 0, 250), (1, 250, 500), (1, 500, 601),
    ]  # fmt: skip


def test_other_spans_of_a_window_are_about_equal(index):
    table = span_table(index, None, {}, 250, False, seed=0)
    lengths = table.stop - table.first
    assert lengths[table.row == 0].tolist() == [235] * 4
    assert lengths[table.row == 1].tolist() == [200, 200, 201]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "weights", [{"move to": 0.25}, {"move to": 0.3, "press": 0}, {"all": 0.1, "press": 1}, {"hold": 0.999}]
)
def test_skills_keep_their_part_of_the_frames(index, skills, weights, aligned):
    table = span_table(index, skills, weights, 100, aligned, seed=3)
    kept = frames_of(table)
    assert len(kept) == len(set(kept)) == table.num_samples
    for row in (0, 1):
        for name in ("move to", "press", "hold"):
            window = range(int(index.begins[row]), int(index.ends[row]))
            held = [frame for frame in window if SKILL_OF.get(frame, "hold") == name]
            wanted = len(held) * weights.get(name, weights.get("all", 1.0))
            found = sum(1 for frame in held if (row, frame) in set(kept))
            assert abs(found - wanted) < 1 + 1e-6
    for span in range(len(table)):
        frames = table.samples(span, 5)
        assert len(frames) == table.count[span] > 0
        assert (np.diff(frames) > 0).all()
        assert table.first[span] <= frames[0]
        assert frames[-1] < table.stop[span]
        assert all(weight_of(frame, weights) > 0 for frame in frames.tolist())


def test_spans_share_a_skills_frames_evenly(index, skills):
    table = span_table(index, skills, {"move to": 0.25}, 20, True, seed=3)
    inside = table.stop <= 400
    wanted = 0.25 * (table.stop - table.first)[inside]
    assert (np.abs(table.count[inside] - wanted) <= 1).all()


def test_weights_of_one_keep_everything(index, skills):
    whole = span_table(index, skills, {"all": 1.0, "press": 1.0}, 64, False, seed=1)
    plain = span_table(index, None, {}, 64, False, seed=1)
    assert frames_of(whole, 4) == frames_of(plain)


def test_kept_numbers_are_rounded_up_as_often_as_the_weight_says(tmp_path):
    index = make_index(tmp_path, dict.fromkeys(range(10, 9_010, 10), 3))
    write_annotation(tmp_path, 10, [("a", [0, 3], [])])
    one = read_annotations(make_index(tmp_path, {10: 3})).skills
    many = dataclasses.replace(
        one,
        numbers=index.numbers,
        offsets=np.arange(len(index.numbers) + 1),
        first=np.zeros(len(index.numbers), np.int64),
        stop=index.lengths,
        kind_ids=np.zeros(len(index.numbers), np.int64),
    )
    table = span_table(index, many, {"a": 0.1}, 10, True, seed=0)
    assert set(table.count.tolist()) == {1}  # 0.3 frames wanted of each: none or one
    expected, deviation = 0.3 * 900, np.sqrt(900 * 0.3 * 0.7)
    assert abs(table.num_samples - expected) < 4 * deviation


def test_epochs_choose_other_frames_and_each_frame_as_often(index, skills):
    table = span_table(index, skills, {"move to": 0.2}, 100, True, seed=7)
    epochs = [table.samples(1, epoch) for epoch in range(400)]
    assert len({tuple(frames) for frames in epochs}) > 390
    counts = np.bincount(np.concatenate(epochs), minlength=200)[100:]
    assert len(counts) == 100  # the span is [100, 200)
    expected = 400 * 0.2
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected * 0.8)).all()


def test_choices_depend_on_seed_episode_and_nothing_else(index, skills):
    weights = {"move to": 0.2}
    table = span_table(index, skills, weights, 100, True, seed=7)
    other = span_table(index, skills, weights, 100, True, seed=8)
    assert frames_of(table) == frames_of(span_table(index, skills, weights, 100, True, seed=7))
    assert frames_of(table) != frames_of(other)
    same = [span for span in range(len(table)) if table.first[span] == 100]  # of either episode
    assert table.samples(same[0], 0).tolist() != table.samples(same[1], 0).tolist()
    second = index.take(np.array([1]))
    alone = span_table(second, skills.of(second), weights, 100, True, seed=7)
    assert frames_of(alone, 2) == [(0, frame) for row, frame in frames_of(table, 2) if row == 1]


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_any_seed_will_do(index, skills, seed):
    table = span_table(index, skills, {"move to": 0.2}, 100, True, seed)
    assert len(frames_of(table, 10**6)) == table.num_samples


def test_workers_hold_the_same_spans(index, skills):
    table = span_table(index, skills, {"press": 0.5}, 100, True, seed=7)
    assert frames_of(pickle.loads(pickle.dumps(table)), 3) == frames_of(table, 3)


def test_of_several_skills_at_once_the_largest_weight_counts(tmp_path):
    write_annotation(tmp_path, 10, [(["hold", "press"], [0, 50], [])])
    index = make_index(tmp_path, {10: 100})
    skills = read_annotations(index).skills
    assert span_table(index, skills, {"all": 0, "press": 1}, 100, True, 0).num_samples == 100
    with pytest.raises(ValueError, match="skill_weights keep no frame; raise one of them"):
        span_table(index, skills, {"hold": 0, "press": 0}, 100, True, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pres", r"no skill 'pres' in .*, but skill_weights names it; did you mean 'press'\? The data have hold, move"),
        ("xyzzy", r"no skill 'xyzzy' in .*; the data have hold, move to, press"),
    ],
)
def test_unknown_skills_are_refused(index, skills, name, message):
    with pytest.raises(ValueError, match=message):
        span_table(index, skills, {name: 0.5}, 100, True, 0)


def test_weights_without_skills_are_refused(index, skills, tmp_path):
    with pytest.raises(ValueError, match="skill_weights need the episodes' skills"):
        span_table(index, None, {"press": 0.5}, 100, True, 0)
    with pytest.raises(ValueError, match="not those of the index; take them with"):
        span_table(index.take(np.array([1])), skills, {"press": 0.5}, 100, True, 0)
    larger = make_index(tmp_path, {10: 1000, 30: 10})
    with pytest.raises(ValueError, match=r"needs skills, .* 1 of 2 chosen episodes of .* have none: task_0 \(30\)"):
        span_table(larger, read_annotations(larger).skills, {"press": 0.5}, 100, True, 0)


def test_spans_have_at_least_a_frame(index):
    with pytest.raises(ValueError, match="longest must be at least 1; got 0"):
        span_table(index, None, {}, 0, True, 0)
