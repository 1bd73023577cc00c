"""Which held-out samples are looked at, from the first samples of their episodes."""

import numpy as np
import pytest

from openpi_b1k.data.order.spread import apportioned, choose

NONE = np.zeros(1, np.int64)  # a source that holds out no episode


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ([1.0], 10, [10]),
        ([0.75, 0.25], 10, [8, 2]),  # 7.5 and 2.5: of equal remainders, the first source's is rounded up
        ([0.25, 0.75], 10, [3, 7]),
        ([0.6, 0.0, 0.4], 256, [154, 0, 102]),
        ([0.1] * 3, 4, [2, 1, 1]),
        ([0.0, 0.0], 5, [0, 0]),
        ([1 / 3, 1 / 3, 1 / 3], 2, [1, 1, 0]),
    ],
)
def test_counts_follow_shares_and_add_up(shares, count, expected):
    assert apportioned(shares, count) == expected


def test_episodes_give_equally_many_frames_whatever_their_length():
    starts = np.array([0, 100, 1100, 1130])
    places = choose([starts], [1.0], 9)
    assert [place.row for place in places] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [place.index for place in places] == [16, 50, 83, 266, 600, 933, 1105, 1115, 1125]


def test_fewer_samples_than_episodes_are_of_episodes_at_equal_distances():
    places = choose([np.arange(101) * 7], [1.0], 4)
    assert [place.row for place in places] == [24, 49, 74, 99]
    assert [place.index % 7 for place in places] == [3, 3, 3, 3]


@pytest.mark.parametrize("count", [1, 5, 6, 12, 50])
def test_no_sample_comes_twice_and_short_episodes_give_all_they_have(count):
    starts = np.array([0, 2, 12])
    places = choose([starts], [1.0], count)
    indices = [place.index for place in places]
    assert indices == sorted(set(indices))
    assert all(starts[place.row] <= place.index < starts[place.row + 1] for place in places)
    assert len(places) == min(2, count // 2) + min(10, count - count // 2)


def test_sources_give_their_share_in_order_and_one_without_held_out_episodes_nothing():
    long = np.array([0, 500, 1000])
    places = choose([long, NONE, long], [0.5, 0.3, 0.2], 14)
    assert [place.source for place in places] == [0] * 10 + [2] * 4
    assert choose([NONE], [1.0], 14) == []
