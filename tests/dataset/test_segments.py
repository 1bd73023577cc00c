import numpy as np
import pytest

from openpi_b1k.data.index.segments import Kind, join_runs, named_episodes, resolve
from tests.dataset.annotation_cases import make_index

KINDS = tuple(Kind(name) for name in "abcdef")


def frame_by_frame(durations, length):
    """The rules, said once per frame, for durations that start at different frames."""
    shown = []
    for frame in range(length):
        covering = [duration for duration in durations if duration[0] <= frame < duration[1]]
        following = [duration for duration in durations if duration[0] > frame]
        last = max(end for _, end, _ in durations)
        at_end = [duration for duration in durations if duration[1] == last]
        shown.append((max(covering) if covering else min(following) if following else max(at_end))[2])
    return shown


@pytest.mark.parametrize("seed", range(40))
def test_every_frame_has_the_skill_that_the_rules_give_it(seed):
    rng = np.random.default_rng(seed)
    starts = rng.choice(60, size=rng.integers(1, 6), replace=False)
    durations = [(int(start), int(start + rng.integers(1, 25)), place) for place, start in enumerate(starts)]
    runs = resolve(durations)
    firsts = [first for first, _ in runs]
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    length = 100
    shown = [runs[np.searchsorted(firsts, frame, side="right") - 1][1] for frame in range(length)]
    assert shown == frame_by_frame(durations, length)


def test_gaps_go_to_the_next_skill_and_the_end_to_the_last():
    assert resolve([(5, 10, 0), (20, 30, 1)]) == [(0, 0), (10, 1)]


def test_the_later_start_wins_and_the_earlier_goes_on_after_it():
    assert resolve([(0, 100, 0), (20, 40, 1)]) == [(0, 0), (20, 1), (40, 0)]


def test_of_two_that_start_together_the_later_in_the_file_counts():
    assert resolve([(0, 10, 0), (0, 10, 1)]) == [(0, 1)]


def test_neighbours_of_one_kind_are_one_run():
    assert resolve([(0, 10, 3), (15, 20, 3), (20, 30, 4)]) == [(0, 3), (20, 4)]


def test_nothing_annotated_is_no_run():
    assert resolve([]) == []


@pytest.fixture
def segments(tmp_path):
    index = make_index(tmp_path, {10: 50, 20: 30, 10030: 40})
    # episode 10: two runs; 20: none; 10030: three, of which the last begins past its end
    first, kinds = np.array([0, 20, 0, 39, 40]), np.array([0, 1, 2, 3, 4])
    return index, join_runs(index, np.array([2, 0, 3]), first, kinds, KINDS)


def test_runs_end_where_the_next_begins_or_the_episode_ends(segments):
    _, made = segments
    assert made.offsets.tolist() == [0, 2, 2, 4]
    assert made.first.tolist() == [0, 20, 0, 39]
    assert made.stop.tolist() == [20, 50, 39, 40]
    assert made.rows.tolist() == [0, 0, 2, 2]


def test_a_frame_is_found_in_its_run(segments):
    _, made = segments
    assert [made.text(0, frame) for frame in (0, 19, 20, 49)] == ["a", "a", "b", "b"]
    assert (made.at(1, 7), made.kind_at(1, 7), made.text(1, 7)) == (-1, None, "")
    assert [made.at(2, frame) for frame in (0, 38, 39)] == [2, 2, 3]


@pytest.mark.parametrize("frame", [-1, 50])
def test_frames_outside_the_episode_are_refused(segments, frame):
    with pytest.raises(IndexError, match=rf"frame {frame} is outside \[0, 50\) of episode 10"):
        segments[1].at(0, frame)


def test_segments_follow_a_choice_of_episodes(segments):
    index, made = segments
    chosen = made.of(index.take(np.array([2, 1, 0])))
    assert chosen.numbers.tolist() == [10030, 20, 10]
    assert [chosen.text(0, 0), chosen.text(0, 39), chosen.text(1, 3), chosen.text(2, 30)] == ["c", "d", "", "b"]
    assert made.of(index.take(np.array([], np.int64))).first.tolist() == []


def test_segments_of_other_episodes_are_refused(segments, tmp_path):
    _, made = segments
    with pytest.raises(ValueError, match="not among those the annotations were read for"):
        made.of(make_index(tmp_path, {10: 50, 40: 30}))
    with pytest.raises(ValueError, match="not among those the annotations were read for"):
        made.of(make_index(tmp_path, {})).of(make_index(tmp_path, {10: 50}))


def test_messages_name_a_few_episodes_of_a_few_tasks(tmp_path):
    index = make_index(tmp_path, {task * 10_000 + take * 10: 9 for task in range(5) for take in range(5)})
    named = named_episodes(index, np.flatnonzero(index.numbers != 10))
    assert named == (
        "task_0 (0, 20, 30 and 1 more), task_1 (10000, 10010, 10020 and 2 more), task_2 (20000, 20010, 20020 and 2 "
        "more) and 2 more tasks"
    )
