import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from openpi_b1k.checkpoints import verification

STATE = {
    "step": jnp.int32(3),
    "opt_state": (optax.ScaleByAdamState(jnp.int32(3), {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))}), None),
    "frozen": {"kernel": jnp.ones((4, 5), jnp.bfloat16)},
}


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a checkpoint of one item that has been written, verified and listed."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "7" / "train_state", STATE)
    verification.verify(tmp_path / "7", {"train_state": verification.describe(STATE)})
    return tmp_path / "7"


def test_arrays_are_described_by_name_type_and_shape():
    assert verification.describe(STATE) == {
        "step": "int32[]",
        "opt_state/0/count": "int32[]",
        "opt_state/0/mu/w": "float32[2, 3]",
        "opt_state/0/nu/w": "float32[2, 3]",
        "frozen/kernel": "bfloat16[4, 5]",
    }


def test_what_was_written_is_whole(checkpoint):
    verification.check(checkpoint)
    verification.require_same(checkpoint, "train_state", STATE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": np.zeros(2, np.float32)}, r"more is None there and float32\[2\] here"),
        ({"step": np.zeros((), np.int64)}, r"step is int32\[\] there and int64\[\] here"),
        (
            {"frozen": {"kernel": jnp.ones((5, 4), jnp.bfloat16)}},
            r"is bfloat16\[4, 5\] there and bfloat16\[5, 4\] here",
        ),
        ({"frozen": {}}, r"frozen/kernel is bfloat16\[4, 5\] there and None here"),
    ],
)
def test_other_arrays_than_given_are_noticed(checkpoint, change, message):
    with pytest.raises(verification.IncompleteCheckpointError, match=r"train_state does not hold what .*" + message):
        verification.verify(checkpoint, {"train_state": verification.describe(STATE | change)})
    with pytest.raises(ValueError, match=r"holds another state than this run's: .*" + message + ".*--weights"):
        verification.require_same(checkpoint, "train_state", STATE | change)


def test_an_array_whose_data_is_gone_is_noticed(tmp_path):
    tree = {"kernel": jnp.ones((4, 5))}  # one, as Orbax does not wait for the others when one cannot be opened
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "7" / "params", tree)
    verification.verify(tmp_path / "7", {"params": verification.describe(tree)})
    for path in (tmp_path / "7" / "params").rglob("d/*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"NOT_FOUND.*kernel"):
        verification.verify(tmp_path / "7", {"params": verification.describe(tree)})


def test_files_that_are_cut_off_or_missing_are_refused(checkpoint):
    data = max((checkpoint / "train_state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(
        verification.IncompleteCheckpointError,
        match=rf"{data.name} has {len(whole) - 1} bytes instead of {len(whole)}: copy .* anew",
    ):
        verification.check(checkpoint)
    data.unlink()
    with pytest.raises(verification.IncompleteCheckpointError, match=rf"{data.name} is missing: copy"):
        verification.check(checkpoint)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(verification.IncompleteCheckpointError, match="not written to the end, or not copied whole"):
        verification.check(checkpoint)
