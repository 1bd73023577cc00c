"""Shares of batches: rows in a fixed order, each made once, whichever processes and workers make them."""

import itertools
import logging
import pickle

import numpy as np
import pytest

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.batches import Shares, join, stack
from openpi_b1k.data.mixture import Mixture
from openpi_b1k.data.order.lanes import LANES
from openpi_b1k.data.order.rows import Rows
from tests.dataset.mixture_cases import Numbers, numbers, source


def batch(mixture, step, size=64, processes=1, workers=1, *, is_skipping=False):
    """Returns the numbers in a step's batch, put together from all shares of all processes."""
    whole = []
    for first in range(0, size, size // processes):
        rows = Rows(size, first, first + size // processes, workers)
        shares = Shares(mixture, rows, is_skipping)
        made = [shares[step * workers + worker]["fields"] for worker in range(workers)]
        whole.append(join(made, [rows.share(step, worker)[0] for worker in range(workers)])["images"]["head"])
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
    share = Shares(mixture, Rows(64, 0, 64, 1), is_skipping=True)[0]
    assert sorted(share["messages"]) == sorted(f"sample {i} is bad" for i in bad)
    assert share["skipped"] == 2


def test_skipping_ends_where_nothing_is_good():
    mixture = numbers(bad=tuple(range(1000)))
    with pytest.raises(BadSampleError, match=r"257 samples in a row could not be read.*audit_dataset.py.*is bad"):
        batch(mixture, 0, is_skipping=True)


def test_an_empty_share_has_no_fields():
    shares = Shares(numbers(), Rows(8, 0, 8, 50), is_skipping=False)
    made = [shares[worker] for worker in range(50)]
    assert sum(bool(share["fields"]) for share in made) == 8
    assert next(share for share in made if not share["fields"]) == {"fields": {}, "skipped": 0, "messages": ()}


def test_fields_that_only_some_models_have():
    mixture = numbers()
    sample = mixture.sample(0)
    assert "point_cloud" not in stack([sample])
    cloud = np.zeros((16, 5, 3), np.float32)
    assert stack([sample | {"point_cloud": cloud}] * 2)["point_cloud"].shape == (2, 16, 5, 3)
