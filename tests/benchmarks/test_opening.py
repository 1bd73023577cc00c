"""Meta files of the 2026 release's size open in little memory; how fast, `scripts/benchmark.py metadata` says."""

import pytest

from openpi_b1k.benchmarks import opening


def test_the_release_opens_in_a_gigabyte(tmp_path):
    opening.write_release(tmp_path)
    found = opening.measure(tmp_path)
    assert (found.episodes, found.frames) == (20_000, 210_916_774)
    assert found.peak_bytes <= 1e9


def test_what_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"cannot open .*FileNotFoundError: no .*info\.json"):
        opening.measure(tmp_path)
