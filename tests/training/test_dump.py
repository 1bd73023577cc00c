import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.training import dump

B, T, S, AH = 8, 5, 6, 4


def make_batch(state, actions):
    images = np.arange(B * 4 * 4 * 3, dtype=np.uint8).reshape(B, 4, 4, 3)
    observation = Observation(
        images={"head": images},
        image_masks={"head": np.ones(B, bool)},
        state=state,
        prompt_tokens=np.ones((B, T), np.int32),
        prompt_mask=np.ones((B, T), bool),
    )
    extra = {"source": np.zeros(B, np.int32)} if "source" in {field.name for field in dataclasses.fields(Batch)} else {}
    batch = Batch(observation, actions, np.ones((B, AH, S), bool), **extra)
    mesh = sharding.make_mesh(2)
    return batch, jax.device_put(batch, sharding.batch_sharding(mesh))


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (B, S)).astype(np.float32), rng.uniform(-1, 1, (B, AH, S)).astype(np.float32)


def test_a_dump_holds_the_batch_the_norms_and_where_to_look_first(tmp_path, inputs):
    state, actions = inputs
    actions[5, 3, 2] = actions[5, 3, 4] = np.nan
    state[7, 1], state[6, 0], state[6, 3] = -50.0, 21.0, 400.0
    batch, sharded = make_batch(state, actions)
    metrics = {
        "loss": jnp.float32(jnp.nan),
        "loss_per_dim": jnp.array([1.0, jnp.inf]),
        "grad_norm/vision": jnp.float32(2.0),
        "grad_norm/action_expert": jnp.float32(jnp.nan),
        "is_finite": jnp.bool_(False),
    }
    directory = dump.dump(tmp_path, 41, sharded, metrics, debug.CONFIG)
    assert directory == tmp_path / "nonfinite-41"

    with np.load(directory / "batch.npz") as stored:
        np.testing.assert_array_equal(stored["actions"], actions)
        np.testing.assert_array_equal(stored["observation.state"], state)
        np.testing.assert_array_equal(stored["observation.images.head"], batch.observation.images["head"])
        assert len(stored.files) == len(jax.tree.leaves(batch))
    report = json.loads((directory / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN in JSON
    assert (report["step"], report["groups"], report["metrics"]["loss"]) == (41, ["action_expert"], "nan")
    assert report["metrics"]["loss_per_dim"] == [1.0, "inf"]
    assert (report["seed"], report["batch_size"]) == (debug.CONFIG.seed, debug.CONFIG.batch_size)
    assert report["findings"] == [
        {"array": "actions", "row": 5, "count": 2, "entry": [3, 2], "value": "nan", "kind": "not finite"},
        {"array": "observation.state", "row": 6, "count": 2, "entry": [3], "value": 400.0, "kind": "extreme"},
        {"array": "observation.state", "row": 7, "count": 1, "entry": [1], "value": -50.0, "kind": "extreme"},
    ]


def test_ordinary_inputs_are_not_suspicious_and_a_list_of_findings_stays_short(inputs):
    state, actions = inputs
    assert dump.suspicious({"state": state, "actions": actions, "tokens": np.full((B, T), 99_999)}) == []
    assert [finding["row"] for finding in dump.suspicious({"actions": np.full_like(actions, np.inf)})] == list(range(B))
    assert len(dump.suspicious({"actions": np.full((99, 2), -30.0)})) == dump.MAX_FINDINGS


def test_rows_come_once_and_in_order_also_where_devices_hold_copies():
    mesh = sharding.make_mesh(2)
    rows = np.arange(8 * 3).reshape(8, 3)
    for spec in (("data",), (("data", "fsdp"),), ()):
        array = jax.device_put(rows, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        np.testing.assert_array_equal(sharding.own_rows(array), rows)
