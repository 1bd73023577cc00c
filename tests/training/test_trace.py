import logging

import jax.numpy as jnp
import pytest

from openpi_b1k.training.trace import STEPS_BEFORE, STEPS_TRACED, Trace


def run(trace, steps):
    for step in steps:
        trace.advance(step, {"loss": jnp.float32(1.0) + step})
    trace.close()


def test_a_wanted_trace_is_written_into_the_run(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(Trace(tmp_path, 40, is_wanted=True), range(41, 50))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert f"trace of a few steps: {tmp_path / 'profile'}" in caplog.text
    assert caplog.text.count("trace of") == 1


@pytest.fixture
def profiler(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda directory: calls.append(("start", directory)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize("last", [STEPS_BEFORE + STEPS_TRACED, STEPS_BEFORE + STEPS_TRACED + 9, STEPS_BEFORE + 1])
def test_it_begins_after_compilation_and_ends_by_itself_or_with_the_run(tmp_path, profiler, last):
    trace = Trace(tmp_path, 0, is_wanted=True)
    for step in range(1, STEPS_BEFORE):
        trace.advance(step, {})
        assert profiler == []
    run(trace, range(STEPS_BEFORE, last + 1))
    assert profiler == [("start", str(tmp_path / "profile")), "stop"]


def test_a_run_too_short_says_so_and_an_unwanted_trace_costs_nothing(tmp_path, profiler, caplog):
    run(Trace(tmp_path, 0, is_wanted=False), range(1, 20))
    assert not caplog.records
    run(Trace(tmp_path, 0, is_wanted=True), range(1, STEPS_BEFORE))
    assert "no trace was made: it begins after 2 steps" in caplog.text
    assert profiler == []
