import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from openpi_b1k.checkpoints import safetensors

DATA = pathlib.Path(__file__).parents[1] / "data"
NUMBERS = np.random.default_rng(0)
TENSORS = {
    "a": NUMBERS.standard_normal((3, 5)).astype(np.float32),
    "b": NUMBERS.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 7), np.float32),
    "scalar": np.float64(3.5).reshape(()),
    "numbers": np.arange(6, dtype=np.int64),
    "flags": np.array([True, False, True]),
}


def entries(tensors):
    return {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}


def write(path, tensors=TENSORS, metadata=None):
    with safetensors.Writer(path, entries(tensors), metadata or {}) as writer:
        for key in reversed(tensors):
            writer.write(key, tensors[key])
    return path


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_what_is_written_is_read(tmp_path):
    file = safetensors.open_file(write(tmp_path / "x.safetensors", metadata={"from": "here"}))
    assert file.tensors == entries(TENSORS)
    assert file.metadata == {"from": "here"}
    for key, tensor in TENSORS.items():
        np.testing.assert_array_equal(file.read(key), tensor, strict=True)
    with pytest.raises(KeyError, match="has no tensor 'c'"):
        file.read("c")


def test_writing_to_what_was_read_changes_no_file(tmp_path):
    path = write(tmp_path / "x.safetensors")
    before = path.read_bytes()
    safetensors.open_file(path).read("a")[:] = 0
    assert path.read_bytes() == before
    np.testing.assert_array_equal(safetensors.open_file(path).read("a"), TENSORS["a"])


def test_the_package_of_that_name_reads_and_writes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    path = write(tmp_path / "x.safetensors")
    theirs = package.load_file(path)
    assert theirs.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        found = theirs[key]
        assert tuple(found.shape) == tensor.shape
        if found.dtype is torch.bfloat16:
            found = found.double().numpy()
            np.testing.assert_array_equal(found, tensor.astype(float), strict=True)
            continue
        np.testing.assert_array_equal(found.numpy(), tensor, strict=True)
    package.save_file(theirs, tmp_path / "y.safetensors")
    file = safetensors.open_file(tmp_path / "y.safetensors")
    assert file.tensors == entries(TENSORS)
    np.testing.assert_array_equal(file.read("b"), TENSORS["b"])


def test_a_directory_and_an_index_of_several_files_are_opened(tmp_path):
    write(tmp_path / "model.safetensors")
    assert safetensors.open_file(tmp_path).tensors == entries(TENSORS)
    split = tmp_path / "split"
    split.mkdir()
    write(split / "1.safetensors", {key: TENSORS[key] for key in ("a", "b")})
    write(split / "2.safetensors", {key: TENSORS[key] for key in ("flags",)})
    places = {"a": "1.safetensors", "b": "1.safetensors", "flags": "2.safetensors"}
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    file = safetensors.open_file(split)
    assert file.tensors == {key: entries(TENSORS)[key] for key in places}
    np.testing.assert_array_equal(file.read("b"), TENSORS["b"])
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    with pytest.raises(ValueError, match=r"differ about which tensors it holds: \['b'\]"):
        safetensors.open_file(split)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "3.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"3\.safetensors, which .*index\.json lists"):
        safetensors.open_file(split)
    (split / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        safetensors.open_file(split)


def test_nothing_there_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*model\.safetensors; give a safetensors file, or a directory"):
        safetensors.open_file(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "is cut off: its header tells of 167 bytes of data, there are 166; get it anew"),
        (lambda content: content + b"x", "has bytes that belong to no tensor"),
        (lambda content: content[:100], "cut off within its header"),
        (lambda content: b"", "cut off within its header"),
        (lambda content: b"\xff" * 8 + content, "its header would be 18446744073709551615 bytes long"),
    ],
    ids=["truncated", "longer", "header", "nothing", "other"],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    path = write(tmp_path / "x.safetensors")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        safetensors.open_file(path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "its header is no JSON"),
        ([], b"", "its header is a list"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "is damaged: where a lies"),
        ({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234", "holds a as F8_E4M3; BOOL, U8"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", r"a is float32 \(2,\) in 4 bytes"),
        ({"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}, b"1234", r"a is uint8 \(-4,\) in 4 bytes"),
        (
            {
                "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]},
            },
            b"1234",
            "b begins at byte 2 of the data, expected 3",
        ),
    ],
    ids=["no json", "list", "no offsets", "type", "size", "negative", "overlap"],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, header, data, message):
    with pytest.raises(ValueError, match=message):
        safetensors.open_file(raw(tmp_path / "x.safetensors", header, data))


def test_a_writer_takes_each_tensor_once_and_as_announced(tmp_path):
    path = tmp_path / "x.safetensors"
    with safetensors.Writer(path, entries(TENSORS), {}) as writer:
        with pytest.raises(ValueError, match=r"a was announced as float32 \(3, 5\); got float32 \(5, 3\)"):
            writer.write("a", TENSORS["a"].T)
        with pytest.raises(KeyError, match="'c' was not announced"):
            writer.write("c", TENSORS["a"])
        writer.write("a", TENSORS["a"])
        with pytest.raises(KeyError, match="'a' has been written"):
            writer.write("a", TENSORS["a"])
        for key in TENSORS.keys() - {"a"}:
            writer.write(key, TENSORS[key])
    np.testing.assert_array_equal(safetensors.open_file(path).read("a"), TENSORS["a"])


def test_a_file_that_lacks_tensors_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match=r"lacks 5 of its tensors: \['b', 'empty', 'flags', 'numbers'\]"),
        safetensors.Writer(tmp_path / "x.safetensors", entries(TENSORS), {}) as writer,
    ):
        writer.write("a", TENSORS["a"])
    with pytest.raises(ValueError, match="a is complex64, which safetensors files are not written with"):
        safetensors.Writer(tmp_path / "y.safetensors", {"a": (np.dtype(np.complex64), (1,))}, {})
