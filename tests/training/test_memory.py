import os

import jax
import pytest

from openpi_b1k.training import memory

PAGE = os.sysconf("SC_PAGE_SIZE")


def add_process(table, number, parent, resident, shared, name="python"):
    entry = table / str(number)
    entry.mkdir(parents=True)
    (entry / "stat").write_text(f"{number} ({name}) S {parent} 1 1 0 -1")
    (entry / "statm").write_text(f"99999 {resident} {shared} 1 0 1 0\n")


def test_memory_of_a_family_counts_shared_pages_once_and_no_strangers(tmp_path):
    add_process(tmp_path, 10, 1, resident=1000, shared=300)
    add_process(tmp_path, 11, 10, resident=700, shared=500, name="fork) server (")
    add_process(tmp_path, 12, 11, resident=600, shared=500)  # a worker of the server's
    add_process(tmp_path, 13, 1, resident=5000, shared=1)
    (tmp_path / "14").mkdir()  # has just ended
    (tmp_path / "self").mkdir()
    expected = (700 + 200 + 100 + 500) * PAGE / 1e9
    assert memory.host_memory_gb(10, tmp_path) == pytest.approx(expected)
    assert memory.host_memory_gb(13, tmp_path) == pytest.approx(5000 * PAGE / 1e9)


def test_without_a_process_table_nothing_is_known(tmp_path):
    assert memory.host_memory_gb(10, tmp_path / "none") is None


def test_memory_of_devices_is_the_largest_peak_or_unknown(monkeypatch):
    assert memory.device_memory_gb() is None  # a CPU does not tell

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2_000_000_000), Device(3_500_000_000)])
    assert memory.device_memory_gb() == 3.5
