"""Minutes of steady load; `scripts/benchmark.py policy --soak-minutes 60` does it for an hour."""

import pytest

from openpi_b1k.benchmarks import soak


@pytest.mark.slow
def test_five_minutes_of_requests_leave_memory_flat_and_every_reply_right():
    found = soak.measure(300.0)
    assert found.requests >= 0.3 * soak.RATE * 300  # fewer would be no load; a busy machine sends late
    assert found.growth_mib <= 32  # 8 messages; 9000 requests bring 33 GB
