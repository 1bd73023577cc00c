import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import debug
from openpi_b1k.config.data import SourceConfig
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.training.window import STEPS_IN_FLIGHT, Compute, NonFiniteLossError, Window, weighted

ACTION = r1pro("like_action").action
CONFIG = dataclasses.replace(debug.CONFIG, batch_size=8, max_nonfinite_steps=3)
MIXTURE = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, extra_sources=(SourceConfig(name="rft", source="random"),))
)


def measured(loss, grad_norm=1.0, *, sources=((0.0, 0),), **groups):
    groups = {f"grad_norm/{name}": jnp.float32(norm) for name, norm in groups.items()}
    return {
        "loss": jnp.float32(loss),
        "loss_per_dim": jnp.arange(32.0) * loss,
        "source_loss": jnp.array([mean for mean, _ in sources]),
        "source_count": jnp.array([count for _, count in sources]),
        "grad_norm": jnp.float32(grad_norm),
        "update_norm/vision": jnp.float32(3),
        "param_norm": jnp.float32(7),
        "learning_rate": jnp.float32(0.5),
        "is_finite": jnp.isfinite(jnp.array([loss, grad_norm, *groups.values()])).all(),
    } | groups


@pytest.fixture
def clock(monkeypatch):
    """Returns a list whose only entry is the time."""
    now = [100.0]
    monkeypatch.setattr("openpi_b1k.training.window.time.perf_counter", lambda: now[0])
    return now


def test_a_line_holds_means_over_the_window_and_losses_by_field(tmp_path):
    window = Window(CONFIG, ACTION, tmp_path)
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        window.add(step, measured(loss, vision=2.0), 0.25)
    line = window.close()
    json.dumps(line)
    assert line["loss"] == 3.0
    assert line["loss/base"] == pytest.approx(3.0 * 1)  # dims 0, 1, 2
    assert line["loss/left_gripper"] == pytest.approx(3.0 * 14)
    assert line["loss/right_arm"] == pytest.approx(3.0 * np.arange(15, 22).mean())
    assert (line["grad_norm"], line["param_norm"], line["learning_rate"]) == (1.0, 7.0, 0.5)
    assert (line["grad_norm/vision"], line["update_norm/vision"]) == (2.0, 3.0)
    assert line["data_wait"] * 8 * 2 == pytest.approx(0.5 * line["samples_per_s"])  # the first step is not timed
    assert line["samples_per_s_per_device"] * jax.device_count() == pytest.approx(line["samples_per_s"])
    assert set(line) == {
        "loss", *(f"loss/{name}" for name in ACTION.names), "grad_norm", "grad_norm/vision", "update_norm/vision",
        "param_norm", "learning_rate", "samples_per_s", "samples_per_s_per_device", "step_time_s", "data_wait",
        "host_memory_gb", "skipped_samples", "skipped_updates", "unix_time",
    }  # fmt: skip


def test_rates_of_a_known_clock(tmp_path, clock):
    window = Window(CONFIG, ACTION, tmp_path, Compute(flops_per_sample=50.0, peak_flops=400.0))
    clock[0] += 60
    window.add(1, measured(1.0), 30.0)  # compiles
    for step in range(2, 6):
        clock[0] += 0.5
        window.add(step, measured(1.0), 0.1)
    with window.pause("checkpoint_stall_s"):
        clock[0] += 7
    with window.pause("checkpoint_stall_s"):
        clock[0] += 2
    line = window.close()
    expected = {
        "step_time_s": 0.5,
        "samples_per_s": 16.0,
        "samples_per_s_per_device": 4.0,  # of four devices
        "data_wait": 0.2,
        "mfu": 4.0 * 50 / 400,
        "checkpoint_stall_s": 9.0,
    }
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    clock[0] += 1.0
    window.add(6, measured(1.0), 0.0)
    line = window.close()
    assert line["step_time_s"] == pytest.approx(1.0)
    assert "checkpoint_stall_s" not in line


def test_losses_by_source_are_weighted_by_what_each_step_had_of_it(tmp_path):
    window = Window(MIXTURE, ACTION, tmp_path)
    window.add(1, measured(1.0, sources=((2.0, 6), (8.0, 2))), 0.0)
    window.add(2, measured(1.0, sources=((4.0, 2), (0.0, 0))), 0.0)
    line = window.close()
    assert line["loss/demonstrations"] == pytest.approx((2 * 6 + 4 * 2) / 8)
    assert line["loss/rft"] == 8.0
    window.add(3, measured(1.0, sources=((2.0, 8), (jnp.nan, 0))), 0.0)
    assert "loss/rft" not in window.close()  # none was drawn, so there is no mean


def test_a_mean_of_nothing_is_no_number():
    found = weighted(np.array([[1.0, np.nan], [3.0, np.nan]]), np.array([[1, 0], [3, 0]]))
    np.testing.assert_array_equal(found, [2.5, np.nan])


def test_the_next_line_starts_afresh(tmp_path):
    window = Window(CONFIG, ACTION, tmp_path)
    window.add(1, measured(5.0), 0.0, skipped_samples=2)
    first = window.close()
    assert "samples_per_s" not in first
    assert first["skipped_samples"] == 2
    window.add(2, measured(1.0), 0.0, skipped_samples=1)
    window.add(3, measured(1.0), 0.0, skipped_samples=4)
    line = window.close()
    assert line["loss"] == 1.0
    assert line["samples_per_s"] > 0
    assert line["skipped_samples"] == 5


@pytest.mark.parametrize(("waited", "is_warned"), [(0.049, False), (0.051, True)])
def test_waiting_for_data_warns_once_a_line_with_what_to_change(tmp_path, caplog, clock, waited, is_warned):
    window = Window(CONFIG, ACTION, tmp_path)
    window.add(1, measured(1.0), 100.0)  # the first batch has to be waited for
    for _ in range(2):
        for step in range(10):
            clock[0] += 1.0
            window.add(step, measured(1.0), waited)
        assert window.close()["data_wait"] == pytest.approx(waited)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 * is_warned
    for warning in warnings:
        assert warning.startswith("5 % of the time since the last line was spent waiting for data: raise --data.num-wo")
        assert "scripts/prepare_dataset.py" in warning


def test_skipped_updates_are_counted_warned_of_once_in_a_row_and_in_no_mean(tmp_path, caplog):
    window = Window(CONFIG, ACTION, tmp_path)
    bad = measured(jnp.nan, jnp.inf, vision=jnp.inf, lora=1.0)
    good = measured(2.0, vision=1.0, lora=1.0)
    for step, metrics in enumerate((good, bad, bad, good, bad, good)):
        window.add(step, metrics, 0.0)
    line = window.close()
    assert (line["loss"], line["grad_norm/vision"], line["skipped_updates"]) == (2.0, 1.0, 3)
    warnings = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert warnings == [
        f"the update of step {step} was skipped: loss nan, gradients that are no numbers in: vision" for step in (1, 4)
    ]
    window.add(6, bad, 0.0)
    line = window.close()
    assert line["skipped_updates"] == 1
    assert not [name for name in line if name.startswith(("loss", "grad_norm", "learning_rate"))]


@pytest.mark.parametrize("is_loss_finite", [False, True])
def test_too_many_skipped_in_a_row_end_the_run_a_few_steps_later_at_most(tmp_path, is_loss_finite):
    window = Window(CONFIG, ACTION, tmp_path)
    bad = measured(1.0 if is_loss_finite else jnp.nan, 1.0, vision=1.0, lora=jnp.nan)
    for step, metrics in ((1, bad), (2, bad), (3, measured(1.0)), (4, bad), (5, bad), (6, bad)):
        window.add(step, metrics, 0.0)
    for step in range(7, 7 + STEPS_IN_FLIGHT - 1):
        window.add(step, bad, 0.0)
    with pytest.raises(
        NonFiniteLossError, match=r"3 updates in a row were skipped, the last at step 6, .* of lora"
    ) as e:
        window.add(6 + STEPS_IN_FLIGHT, bad, 0.0)
    assert f"kept in {tmp_path}" in str(e.value)
    assert "norm stats" in str(e.value)
    assert (e.value.step, e.value.groups) == (6, ("lora",))
    assert np.isnan(e.value.metrics["grad_norm/lora"])


def test_what_is_in_flight_is_looked_at_before_a_pause_and_at_the_end_of_a_line(tmp_path):
    for finish in (Window.close, Window.check, lambda window: window.pause("checkpoint_stall_s").__enter__()):
        window = Window(dataclasses.replace(CONFIG, max_nonfinite_steps=1), ACTION, tmp_path)
        window.add(1, measured(1.0), 0.0)
        window.add(2, measured(jnp.nan), 0.0)
        with pytest.raises(NonFiniteLossError, match="no group"):
            finish(window)


def test_only_so_many_steps_are_in_flight(tmp_path, monkeypatch):
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda metrics: fetched.append(float(metrics["loss"])) or get(metrics))
    window = Window(CONFIG, ACTION, tmp_path)
    for step in range(6):
        window.add(step, measured(step), 0.0)
        assert fetched == [float(done) for done in range(max(step - STEPS_IN_FLIGHT, 0) + 1)]
        assert window.newest()["loss"] == fetched[-1]


def test_the_process_of_the_tests_is_counted_itself(tmp_path):
    window = Window(CONFIG, ACTION, tmp_path)
    window.add(1, measured(1.0), 0.0)
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert window.close()["host_memory_gb"] >= 0.9 * resident / 1e9
