"""Shares of batches: rows in a fixed order, each made once, whichever processes and workers make them."""

import itertools
import logging
import pickle

import numpy as np
import pytest

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.batch_memory import Layout, OwnBlocks, SharedBlocks
from openpi_b1k.data.batches import Share, Shares, flatten
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.lanes import LANES
from openpi_b1k.data.order.rows import Rows
from tests.dataset.mixture_cases import Numbers, numbers, source


def batch(mixture, step, size=64, processes=1, workers=1, *, is_skipping=False):
    """Returns the numbers in a step's batch, put together from all shares of all processes."""
    whole = []
    for first in range(0, size, size // processes):
        rows = Rows(size, first, first + size // processes, workers)
        fields, _ = Shares(mixture, rows, is_skipping).batch(step, OwnBlocks())
        whole.append(fields["images"]["head"])
    return np.concatenate(whole)


@pytest.mark.parametrize("size", [8, 16, 64, 192, 256])
def test_batches_are_the_same_for_all_processes_and_workers(size):
    expected = [batch(numbers(), step, size) for step in (0, 3)]
    for processes, workers in itertools.product((1, 2, 4, 8), (1, 2, 3, 7)):
        for step, whole in zip((0, 3), expected, strict=True):
            np.testing.assert_array_equal(batch(numbers(), step, size, processes, workers), whole)


def test_a_step_takes_the_next_positions_of_the_sequence():
    mixture = numbers()
    for step in (0, 1, 9):
        taken = [mixture.address(n).index for n in range(step * 48, (step + 1) * 48)]
        assert sorted(batch(mixture, step, 48)) == sorted(taken)


def test_every_epoch_holds_every_sample_once():
    seen = np.concatenate([batch(numbers(), step, 8) for step in range(250)])
    np.testing.assert_array_equal(np.sort(seen[:1000]), np.arange(1000))
    np.testing.assert_array_equal(np.sort(seen[1000:]), np.arange(1000))


@pytest.mark.parametrize(("size", "processes", "workers"), [(256, 1, 3), (256, 4, 5), (64, 8, 2), (8, 2, 2), (8, 8, 1)])
def test_a_lane_stays_with_one_process_and_one_worker_and_comes_in_order(size, processes, workers):
    owners, last, made = {}, {}, np.zeros((processes, workers), int)
    for step, process in itertools.product(range(40), range(processes)):
        rows = Rows(size, process * size // processes, (process + 1) * size // processes, workers)
        for worker in range(workers):
            for n in rows.share(step, worker)[1].tolist():
                assert owners.setdefault(n % LANES, (process, worker)) == (process, worker)
                assert n > last.get(n % LANES, -1)
                last[n % LANES] = n
                made[process, worker] += 1
    assert set(owners) == set(range(LANES))
    assert made.max() <= 1.5 * made.min()


def test_mixtures_draw_by_weight_each_source_in_its_own_order():
    sources = [source(Numbers(1000), 3.0), source(Numbers(500, offset=10_000), 1.0, seed=1)]
    mixture = Mixture(sources)
    assert mixture.shares.tolist() == [0.75, 0.25]
    seen = np.concatenate([batch(mixture, step, 256) for step in range(8)])
    assert np.abs((seen < 10_000).reshape(8, 256).sum(axis=1) - 192).max() <= 8
    addresses = [mixture.address(n) for n in range(1333)]
    for number in (0, 1):
        own = [address.index for address in addresses if address.source == number]
        assert len(own) > 0.9 * len(addresses) * (0.75, 0.25)[number]
        assert len(set(own)) > 0.95 * len(own)  # lanes come to their parts' ends at slightly different times
    addresses = [mixture.address(n) for n in range(10_000)]
    counts = np.bincount([address.index for address in addresses if address.source == 1])
    assert (counts.min(), counts.max()) in ((4, 6), (4, 5), (5, 6), (5, 5))


def test_a_batch_says_which_source_each_row_is_of():
    mixture = Mixture([source(Numbers(1000), 3.0), source(Numbers(500, offset=10_000), 1.0, seed=1)])
    sample = mixture.sample(0)["source"]
    assert (sample.shape, sample.dtype) == ((), np.int32)
    rows = Rows(64, 0, 64, 1)
    fields, _ = Shares(mixture, rows, is_skipping=False).batch(0, OwnBlocks())
    assert fields["source"].dtype == np.int32
    np.testing.assert_array_equal(fields["source"], fields["state"] >= 10_000)
    assert set(fields["source"].tolist()) == {0, 1}


def test_the_sources_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        Mixture([source(Numbers(1000), 3.0), source(Numbers(500), 1.0)]).log()
    assert (
        "source numbers: 1000 samples, weight 3, share 75.00 %, an epoch every 1333 samples of the run" in caplog.text
    )


def test_a_copy_in_another_process_gives_the_same():
    mixture = numbers()
    expected = [mixture.address(n).index for n in range(300)]
    copy = pickle.loads(pickle.dumps(mixture))
    assert len(pickle.dumps(mixture)) == len(pickle.dumps(numbers()))  # where lanes are is not sent along
    assert [copy.address(n).index for n in range(300)] == expected


def test_a_bad_sample_is_named():
    mixture = numbers(bad=(numbers().address(9).index,))
    with pytest.raises(BadSampleError, match="is bad"):
        batch(mixture, 0)


def test_skipping_replaces_a_bad_sample_by_the_next_good_one_of_its_lane():
    plain = numbers()
    bad = tuple(plain.address(n).index for n in (9, 9 + LANES, 9 + 2 * LANES, 20))
    replacing = {bad[0]: 9 + 3 * LANES, bad[3]: 20 + LANES}
    expected = [plain.address(replacing[i]).index if i in replacing else i for i in batch(plain, 0).tolist()]
    mixture = numbers(bad=bad)
    for processes, workers in ((1, 1), (1, 3), (4, 2)):
        found = batch(mixture, 0, processes=processes, workers=workers, is_skipping=True)
        np.testing.assert_array_equal(found, expected)
    _, (share,) = Shares(mixture, Rows(64, 0, 64, 1), is_skipping=True).batch(0, OwnBlocks())
    assert sorted(share.messages) == sorted(f"sample {i} is bad" for i in bad)
    assert share.skipped == 2


def test_skipping_ends_where_nothing_is_good():
    mixture = numbers(bad=tuple(range(1000)))
    with pytest.raises(BadSampleError, match=r"257 samples in a row could not be read.*audit_dataset.py.*is bad"):
        batch(mixture, 0, is_skipping=True)


def test_an_empty_share_asks_for_no_memory():
    shares = Shares(numbers(), Rows(8, 0, 8, 50), is_skipping=False)
    _, made = shares.batch(0, OwnBlocks())
    assert sum(share.layout is not None for share in made) <= 8
    empty = next(worker for worker in range(50) if made[worker].layout is None)
    assert shares.fill(0, empty, None) == Share(None, 0, ())


def test_fields_that_only_some_models_have():
    mixture = numbers()
    sample = mixture.sample(0)
    assert ("point_cloud",) not in flatten(sample)
    cloud = np.zeros((16, 5, 3), np.float32)
    layout = Layout.of(flatten(sample | {"point_cloud": cloud}), 2)
    assert layout.views(OwnBlocks().block(layout.nbytes))["point_cloud",].shape == (2, 16, 5, 3)


def test_samples_of_different_form_are_refused():
    mixture = numbers()
    make = mixture.sample
    shares = Shares(mixture, Rows(8, 0, 8, 1), is_skipping=False)
    mixture.sample = lambda n: make(n) | ({"state": np.zeros(1, np.int64)} if n == 3 else {})
    with pytest.raises(ValueError, match=r"same shapes and types; state is int64 \[1\] in one and int64 \[\]"):
        shares.batch(0, OwnBlocks())
    mixture.sample = lambda n: make(n) | ({"state": np.float32(1)} if n == 3 else {})
    with pytest.raises(ValueError, match=r"state is float32 \[\] in one and int64 \[\] in another"):
        shares.batch(0, OwnBlocks())
    mixture.sample = lambda n: make(n) | ({"point_cloud": np.zeros(1)} if n == 3 else {})
    with pytest.raises(ValueError, match=r"must have the same fields; got .*point_cloud"):
        shares.batch(0, OwnBlocks())


def test_arrays_of_a_layout_are_aligned_apart_and_of_their_type():
    rng = np.random.default_rng(0)
    rows = {("a", "x"): rng.integers(0, 256, (3, 5), np.uint8), ("b",): np.float32(2.5), ("c",): np.ones((2, 1), bool)}
    layout = Layout.of(rows, 7)
    block = OwnBlocks().block(layout.nbytes)
    block[:] = 0
    views = layout.views(block)
    for path, row in rows.items():
        assert (views[path].shape, views[path].dtype) == ((7, *row.shape), row.dtype)
        assert views[path].flags.c_contiguous
        assert views[path].ctypes.data % 64 == 0
        views[path][2] = row
    for path, row in rows.items():
        np.testing.assert_array_equal(views[path], np.where(np.arange(7).reshape(-1, *[1] * row.ndim) == 2, row, 0))


def test_a_block_is_used_again_only_when_nothing_lies_in_it():
    blocks = OwnBlocks()
    first = blocks.block(100)
    address, part = first.ctypes.data, first[10:20].view(np.int16)
    del first
    second = blocks.block(100)
    assert second.ctypes.data != address
    del part
    assert blocks.block(100).ctypes.data == address
    assert blocks.block(50).nbytes == 50


def test_shared_blocks_come_round_and_keep_one_layout():
    blocks = SharedBlocks(2)
    layout = Layout.of({("a",): np.float32(0)}, 3)
    for number in (0, 1):
        blocks.views(layout, number)["a",][:] = number
    assert [blocks.views(layout, number)["a",].tolist() for number in (4, 7)] == [[0] * 3, [1] * 3]
    assert blocks.block(4).tobytes() == bytes(len(blocks.block(4)))
    with pytest.raises(ValueError, match=r"one has a int16 \[\], an earlier one a float32"):
        blocks.views(Layout.of({("a",): np.int16(0)}, 3), 0)
    blocks.close()
    blocks.close()
