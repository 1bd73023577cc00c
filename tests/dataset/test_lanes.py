"""The order of one source: every kept sample once per epoch, whatever is asked first; few spans open at a time."""

import dataclasses
import itertools
import pickle
import time

import numpy as np
import pytest

from openpi_b1k.data.order.lanes import LANES, REVERSED, LaneOrder
from openpi_b1k.data.order.slots import RUN, Mixing, Part, take_turns

FRAMES, SPANS = Mixing(num_open=3), Mixing(num_open=2, is_sequential=True)
either = pytest.mark.parametrize("mixing", [FRAMES, SPANS, Mixing(1, is_sequential=True), Mixing(64)])


@dataclasses.dataclass
class Table:
    """Spans of several episodes; an epoch keeps every second frame, those of even number or the others."""

    lengths: list[int]
    spans_per_row: int = 3
    thinned: bool = False

    def __post_init__(self):
        lengths = np.array(self.lengths)
        self.row = np.arange(len(lengths)) // self.spans_per_row
        self.first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.count = lengths // 2 if self.thinned else lengths

    def samples(self, span, epoch):
        frames = self.first[span] + np.arange(self.lengths[span])
        return frames[epoch % 2 :: 2][: self.count[span]] if self.thinned else frames


def make(table, mixing, seed=0):
    return LaneOrder(table, np.zeros(max(table.row) + 1, np.int64), mixing, seed)


def indices(order, positions):
    return np.array([order.pick(int(n)).index for n in positions])


RAGGED = np.random.default_rng(0).integers(1, 90, 100).tolist()
tables = pytest.mark.parametrize("lengths", [[1], [63], [64, 1], [1000], [5] * 40, [0, 700, 0, 0, 3, 0], RAGGED])


@tables
@either
def test_every_epoch_holds_every_sample_once(lengths, mixing):
    order = make(Table(lengths), mixing)
    size = order.num_samples
    assert size == sum(lengths)
    for epoch in (0, 5):
        seen = indices(order, range(epoch * size, (epoch + 1) * size))
        np.testing.assert_array_equal(np.sort(seen), np.arange(size))


@either
def test_an_epoch_holds_the_kept_samples_and_each_epoch_its_own(mixing):
    table = Table(RAGGED, thinned=True)
    order = make(table, mixing)
    size = order.num_samples
    assert size == sum(length // 2 for length in RAGGED)
    for epoch in (0, 1):
        seen = indices(order, range(epoch * size, (epoch + 1) * size))
        expected = np.concatenate([table.samples(span, epoch) for span in range(len(RAGGED))])
        np.testing.assert_array_equal(np.sort(seen), expected)


@either
def test_position_alone_decides(mixing):
    table = Table(RAGGED)
    positions = np.random.default_rng(1).permutation(2 * sum(RAGGED))[:200]
    whole = make(table, mixing)
    expected = indices(whole, range(2 * sum(RAGGED)))
    np.testing.assert_array_equal(indices(make(table, mixing), positions), expected[positions])
    copy = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(indices(copy, positions), expected[positions])
    for position in positions[:20]:
        assert make(table, mixing).pick(int(position)).index == expected[position]


@pytest.mark.parametrize("epoch", [0, 1])
def test_lanes_with_one_span_more_are_shared_evenly_by_readers(epoch):
    mixing = Mixing(1, is_sequential=True, num_more=20)
    order = make(Table([500] * 64 * 3), mixing)
    size = order.num_samples
    spans = []
    for lane in range(LANES):
        positions = range(epoch * size + lane + 100 * LANES, epoch * size + lane + 140 * LANES, LANES)
        runs = {(int(pick.index) // 500) for pick in map(order.pick, positions)}
        spans.append(len(runs))
    assert sorted(spans)[:40] == [1] * 40
    assert sum(count > 1 for count in spans) >= 20
    for readers in (2, 4, 8):
        shares = [sum(mixing.open_in(number) for number in range(one, LANES, readers)) for one in range(readers)]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == LANES + 20


def test_epochs_and_seeds_differ():
    size = sum(RAGGED)
    orders = [indices(make(Table(RAGGED), FRAMES, seed), range(size * 2)) for seed in (0, 1)]
    halves = [half for order in orders for half in np.split(order, 2)]
    for one, other in itertools.combinations(halves, 2):
        assert (one != other).mean() > 0.95  # of 72 samples of a part, one agrees by chance


@either
def test_lanes_own_disjoint_stretches_of_the_episodes(mixing):
    order = make(Table(RAGGED), mixing)
    size = order.num_samples
    stretches = []
    for number in range(LANES):
        seen = np.sort(indices(order, range(number, size, LANES)))
        np.testing.assert_array_equal(seen, np.arange(seen[0], seen[-1] + 1))
        assert order.bounds(number) == (seen[0], seen[-1] + 1)
        assert len(seen) in (size // LANES, size // LANES + 1)
        stretches.append((seen[0], number))
    assert [REVERSED[number] for _, number in sorted(stretches)] == list(range(LANES))


def test_numbers_with_the_same_last_bits_lie_together():
    assert sorted(REVERSED) == list(range(LANES))
    for processes in (2, 4, 8):
        places = [sorted(REVERSED[number] for number in range(one, LANES, processes)) for one in range(processes)]
        assert all(own == list(range(own[0], own[0] + LANES // processes)) for own in places)


def slots_of(part, size):
    """Returns the places of each slot."""
    slots = {}
    for place in range(size):
        slots.setdefault(part.slot_of(place)[0], []).append(place)
    return list(slots.values())


@pytest.mark.parametrize("num_open", [1, 2, 5, 100])
def test_runs_are_short_in_order_and_of_few_spans_and_every_span_opens_once_or_twice(num_open):
    counts = np.array([250, 250, 13, 250, 1, 250, 187, 250])
    owner = np.repeat(np.arange(8), counts)
    starts = np.cumsum(counts) - counts
    part = Part(counts, lambda i: starts[i] + np.arange(counts[i]), Mixing(num_open, is_sequential=True), seed=3)
    following = {}
    opened = []
    for places in slots_of(part, counts.sum()):
        picks = [part.pick(place) for place in places]
        spans = {int(owner[pick.index]) for pick in picks}
        assert len(spans) <= num_open
        runs = {span: next(pick.run for pick in picks if owner[pick.index] == span).tolist() for span in spans}
        for pick in picks:
            np.testing.assert_array_equal(pick.run, runs[int(owner[pick.index])])
        assert sorted(pick.index for pick in picks) == sorted(i for run in runs.values() for i in run)
        for span, run in runs.items():
            assert len(run) <= RUN
            assert run == list(range(run[0], run[0] + len(run)))
            if following.get(span) != run[0]:
                opened.append(span)
            following[span] = run[-1] + 1
    assert set(opened) == set(range(8))
    assert len(opened) <= len(counts) + min(num_open, 8)
    # but for those that wrap around the part's ends, a span is opened at its first sample and goes on to its last


def test_a_slot_is_shuffled_and_frames_of_random_access_have_no_neighbourhood():
    counts = np.full(20, 2000)
    samples = lambda i: i * 2000 + np.arange(2000)  # noqa: E731
    near = Part(counts, samples, Mixing(2, is_sequential=True), seed=0)
    far = Part(counts, samples, Mixing(8), seed=0)
    close = np.array([near.pick(place).index for place in range(2000)])
    apart = np.array([far.pick(place).index for place in range(8000)])
    assert far.pick(0).run is None
    assert (np.diff(close) == 1).mean() < 0.1
    np.testing.assert_array_less(0.8, [np.mean(np.diff(apart % 2000) < 0) / 0.5])
    lags = np.corrcoef(apart[:-1] % 2000, apart[1:] % 2000)[0, 1]
    assert abs(lags) < 0.05
    distinct = [len(set((apart[first : first + 8] // 2000).tolist())) for first in range(0, 8000, 8)]
    assert np.mean(distinct) > 7.8  # the eight open spans take turns


@pytest.mark.parametrize("sizes", [[5], [3, 3], [16, 16, 16], [16, 1, 0, 7], [0, 4]])
def test_runs_take_turns_and_are_shuffled(sizes):
    orders = [take_turns(np.array(sizes), seed) for seed in range(300)]
    runs = np.repeat(np.arange(len(sizes)), sizes)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(sum(sizes)))
        for run, size in enumerate(sizes):
            places = np.flatnonzero(runs[order] == run)
            if size > 1:
                assert np.diff(places).max() <= 2 * sum(sizes) / size
    first = np.bincount([order[0] for order in orders], minlength=sum(sizes))
    assert (first > 0).mean() > 0.8 or sum(sizes) > 20


@pytest.mark.parametrize("mixing", [Mixing(2, is_sequential=True), Mixing(8)])
def test_a_million_spans_are_opened_at_once_and_walked_quickly(mixing):
    counts = np.full(844_000, 250)
    table = dataclasses.make_dataclass("Whole", [])()
    table.row, table.count = np.zeros(844_000, np.int64), counts
    table.samples = lambda span, epoch: np.arange(span * 250, span * 250 + 250)
    start = time.process_time()
    order = make(table, mixing)
    lanes = [order.pick(10**9 + n).index for n in range(LANES)]
    opened = time.process_time() - start
    start = time.process_time()
    seen = {order.pick(10**9 + LANES + n).index for n in range(10_000)} | set(lanes)
    each = (time.process_time() - start) / 10_000
    assert len(seen) == 10_064
    assert opened < 5
    assert each < 500e-6  # measured 10 us


def test_refusals():
    with pytest.raises(ValueError, match="keeps no sample; see its tasks, episodes, trim_idle and skill_weights"):
        make(Table([0, 0]), FRAMES)
    with pytest.raises(ValueError, match="positions must not be negative; got -1"):
        make(Table([3]), FRAMES).pick(-1)
    with pytest.raises(IndexError, match=r"place 3 is outside \[0, 3\) of a part"):
        Part(np.array([3]), lambda i: np.arange(3), FRAMES, seed=0).pick(3)
