"""The restricted reader of openpi-comet's pickles: what NumPy writes comes back, anything else is refused by name."""

import collections
import datetime as dt
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from openpi_b1k.curation.rollouts.unpickling import read_vectors
from tests.curation.rollout_cases import pickled, write_pickle

RNG = np.random.default_rng(0)
STATES, ACTIONS = RNG.normal(size=(5, 256)).astype(np.float32), RNG.normal(size=(5, 23)).astype(np.float32)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def write(path, value, **options):
    np.savez(path / "a.npz", value, **options)
    return path / "a.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_comet_writes_comes_back(tmp_path, save):
    save(tmp_path / "a.npz", {"state": list(STATES), "action": list(ACTIONS)})
    vectors = read_vectors(tmp_path / "a.npz")
    assert list(vectors) == ["state", "action"]
    np.testing.assert_array_equal(vectors["state"], STATES)
    np.testing.assert_array_equal(vectors["action"], ACTIONS)
    assert vectors["state"].dtype == vectors["action"].dtype == np.float32


@pytest.mark.parametrize(
    "rows",
    [
        list(ACTIONS.astype(np.float64)),
        list(ACTIONS.astype(">f4")),
        ACTIONS,
        np.asfortranarray(ACTIONS),
        [row[None] for row in ACTIONS],
        ACTIONS.tolist(),
        [list(row) for row in ACTIONS],  # NumPy's scalars
    ],
    ids=["float64", "big endian", "one array", "Fortran order", "a batch of one", "floats", "scalars"],
)
def test_vectors_may_be_lists_or_arrays_of_any_numbers(tmp_path, rows):
    np.testing.assert_array_equal(read_vectors(write(tmp_path, {"action": rows}))["action"], ACTIONS)


def test_the_older_numpys_names_are_read_too(tmp_path):
    content = pickled({"action": list(ACTIONS)}).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    np.testing.assert_array_equal(read_vectors(write_pickle(tmp_path / "a.npz", content))["action"], ACTIONS)


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (Call(os.system, "touch ran"), "posix.system"),
        (Call(eval, "open('ran', 'w')"), "builtins.eval"),
        (Call(subprocess.Popen, ["touch", "ran"]), "subprocess.Popen"),
        (Call(np.load, "ran"), "numpy.load"),
        (Call(np.fromfile, "ran"), "numpy.fromfile"),
        (dt.date(2026, 1, 1), "datetime.date"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (Call(getattr, (), "count"), "builtins.getattr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("place", ["whole", "key", "vector", "beside"])
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, hostile, name, place):
    monkeypatch.chdir(tmp_path)
    if place == "key":
        content = b"\x80\x03}" + pickle.dumps(hostile, 3)[2:-1] + b"K\x01s."
    else:
        value = {"whole": hostile, "vector": {"state": [hostile]}, "beside": {"state": list(STATES), "more": hostile}}
        content = pickled(value[place])
    path = write_pickle(tmp_path / "a.npz", content)
    with pytest.raises(ValueError, match=rf"a\.npz is refused: .*'?{name}'?"):
        read_vectors(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def dtype_state(dtype, **changes):
    """Returns a pickle of an array of objects that holds an array whose dtype's state is changed."""
    name, args, state = dtype.__reduce__()
    fields = {"version": 0, "order": 1, "subarray": 2, "names": 3, "fields": 4, "size": 5, "alignment": 6, "flags": 7}
    state = list(state)
    for field, value in changes.items():
        state[fields[field]] = value
    return name, args, tuple(state)


class Forged:
    """Pickles as an array with a dtype, a shape and a content of one's own."""

    def __init__(self, dtype, shape, content):
        self.parts = (dtype, shape, content)

    def __reduce__(self):
        dtype, shape, content = self.parts
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content)


class ForgedDtype:
    def __init__(self, code, **changes):
        self.state = dtype_state(np.dtype(code), **changes)

    def __reduce__(self):
        return self.state


@pytest.mark.parametrize(
    ("dtype", "shape", "content", "told"),
    [
        # With NumPy itself these bytes would be taken for the address of an object.
        (ForgedDtype("O", flags=0), (1,), b"\x10\x32\x54\x76\x10\x32\x54\x76", "an array of objects without its objec"),
        (np.dtype("O"), (3,), [1], "an array of objects without its objects"),
        (np.dtype("f4"), (2**40,), b"\0" * 8, "2 numbers in an array of shape"),
        (np.dtype("f4"), (-1, -2), b"\0" * 8, "one unknown dimension"),
        (np.dtype("f4"), (2,), b"\0" * 7, "buffer size"),
        (np.dtype([("a", "f4")]), (1,), b"\0" * 4, "arrays of type 'V4'"),
        (ForgedDtype("f4", names=("a",), fields={"a": (np.dtype("O"), 0)}), (1,), b"\0" * 4, "compound type"),
        (ForgedDtype("f4", order="?"), (1,), b"\0" * 4, "compound type"),
        (np.dtype("U4"), (1,), b"\0" * 16, "arrays of type 'U4'"),
        (np.dtype("M8[s]"), (1,), b"\0" * 8, "arrays of type 'M8'"),
        (np.dtype("c8"), (1,), b"\0" * 8, "arrays of type 'c8'"),
        ("f4", (1,), b"\0" * 4, "attribute"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, dtype, shape, content, told):
    path = write_pickle(tmp_path / "a.npz", pickled({"state": [Forged(dtype, shape, content)]}))
    with pytest.raises(ValueError, match=told):
        read_vectors(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is refused: "),
        (pickled({"state": list(STATES)})[:-40], "is refused: "),
        (b"\x80\x04r\xff\xff\xff\x7f.", "room for 2147483647 objects"),
        (b"\x80\x04X\xff\xff\xff\x7fab.", "is refused: "),
        (b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".", "must hold a dict"),
        (b"\x80\x04cnumpy\ndtype\n(db.", "is refused: "),  # a state for the class itself
        (b"\x80\x04N.", "must hold a dict of named lists of vectors; got NoneType"),
        (pickled({1: list(STATES)}), "must hold a dict"),
        (pickled({"state": "text"}), "'state' in .* must be a list of vectors of one size"),
        (pickled({"state": []}), "expected a list of 1 to 200000 entries"),
        (pickled({"state": [STATES[0], ACTIONS[0]]}), "all input arrays must have the same shape"),
        (pickled({"state": [["a", "b"]]}), "could not convert string"),
        (pickled({"state": [[[1.0], [2.0]]]}), "list"),
    ],
)
def test_what_is_no_such_pickle_is_refused(tmp_path, content, told):
    with pytest.raises(ValueError, match=told):
        read_vectors(write_pickle(tmp_path / "a.npz", content))


def test_lists_that_mean_far_more_than_their_size_are_refused(tmp_path):
    row = [0.5] * 2000
    with pytest.raises(ValueError, match="expected a list of 1 to 1024 entries"):
        read_vectors(write(tmp_path, {"state": [row] * 3}))
    deep = [0.5, 0.5]
    for _ in range(40):  # 2**41 numbers in some 200 bytes
        deep = [deep, deep]
    with pytest.raises(ValueError, match="float"):
        read_vectors(write(tmp_path, {"state": deep}))


def test_files_that_are_no_such_npz_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="is no whole npz file"):
        read_vectors(tmp_path / "text.npz")
    whole = write(tmp_path, {"state": list(STATES)}).read_bytes()
    (tmp_path / "damaged.npz").write_bytes(whole[:200] + b"\0\0\0\0" + whole[204:])
    with pytest.raises(ValueError, match="is no whole npz file"):
        read_vectors(tmp_path / "damaged.npz")
    np.savez(tmp_path / "named.npz", state=STATES)
    with pytest.raises(ValueError, match=r"does not hold arr_0\.npy"):
        read_vectors(tmp_path / "named.npz")
    with pytest.raises(ValueError, match="must be a pickled dict; it is an array of type float32"):
        read_vectors(write(tmp_path, STATES))
    with zipfile.ZipFile(tmp_path / "new.npz", "w") as archive:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_2_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
        archive.writestr("arr_0.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="another npy version"):
        read_vectors(tmp_path / "new.npz")
    monkeypatch.setattr("openpi_b1k.curation.rollouts.unpickling.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        read_vectors(write(tmp_path, {"state": list(STATES)}))


def test_damaged_pickles_are_refused_or_read_and_nothing_else_happens(tmp_path):
    """Bytes changed, cut out or put in, at random: no other error, and what is read is numbers."""
    rng = np.random.default_rng(0)
    whole = pickled({"state": list(STATES[:3, :8])})
    num_refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(whole) - 20, size=rng.integers(1, 4)).tolist():
            match int(rng.integers(3)):
                case 0:
                    content[place] = int(rng.integers(256))
                case 1:
                    del content[place : place + int(rng.integers(1, 5))]
                case _:
                    content[place:place] = rng.bytes(3)
        try:
            vectors = read_vectors(write_pickle(tmp_path / "a.npz", bytes(content)))
        except ValueError:
            num_refused += 1
        else:
            assert all(rows.dtype == np.float32 and rows.ndim == 2 for rows in vectors.values())
    assert num_refused > 200
