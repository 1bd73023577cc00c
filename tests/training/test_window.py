import json

import jax.numpy as jnp
import numpy as np
import pytest

from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.training.window import NonFiniteLossError, Window

ACTION = r1pro("like_action").action


def measured(loss, grad_norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "loss_per_dim": jnp.arange(32.0) * loss,
        "grad_norm": jnp.float32(grad_norm),
        "param_norm": jnp.float32(7),
        "learning_rate": jnp.float32(0.5),
    }


def test_a_line_holds_means_over_the_window_and_losses_by_field(tmp_path):
    window = Window(8, ACTION, tmp_path)
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        window.add(step, measured(loss), 0.25)
    line = window.close()
    json.dumps(line)
    assert line["loss"] == 3.0
    assert line["loss/base"] == pytest.approx(3.0 * 1)  # dims 0, 1, 2
    assert line["loss/left_gripper"] == pytest.approx(3.0 * 14)
    assert line["loss/right_arm"] == pytest.approx(3.0 * np.arange(15, 22).mean())
    assert (line["grad_norm"], line["param_norm"], line["learning_rate"]) == (1.0, 7.0, 0.5)
    assert line["data_wait"] * 8 * 2 == pytest.approx(0.5 * line["samples_per_s"])  # the first step is not timed
    assert set(line) == {
        "loss", *(f"loss/{name}" for name in ACTION.names), "grad_norm", "param_norm", "learning_rate", "samples_per_s",
        "data_wait", "skipped_samples", "unix_time",
    }  # fmt: skip


def test_the_next_line_starts_afresh(tmp_path):
    window = Window(8, ACTION, tmp_path)
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
def test_waiting_for_data_warns_once_a_line_with_what_to_change(tmp_path, caplog, monkeypatch, waited, is_warned):
    now = 0.0
    monkeypatch.setattr("openpi_b1k.training.window.time.perf_counter", lambda: now)
    window = Window(8, ACTION, tmp_path)
    window.add(1, measured(1.0), 100.0)  # the first batch has to be waited for
    for _ in range(2):
        for step in range(10):
            now += 1.0
            window.add(step, measured(1.0), waited)
        assert window.close()["data_wait"] == pytest.approx(waited)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 * is_warned
    for warning in warnings:
        assert warning.startswith("5 % of the time since the last line was spent waiting for data: raise --data.num-wo")
        assert "scripts/prepare_dataset.py" in warning


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_none_stops_the_run_and_says_where_to_look(tmp_path, name):
    window = Window(8, ACTION, tmp_path)
    window.add(11, measured(1.0), 0.0)
    window.add(12, measured(1.0) | {name: jnp.float32(jnp.nan)}, 0.0)
    window.add(13, measured(jnp.nan), 0.0)
    with pytest.raises(NonFiniteLossError, match=f"{name} is nan at step 12; checkpoints .* kept in {tmp_path}"):
        window.check()
    with pytest.raises(NonFiniteLossError, match="norm stats"):
        window.close()
