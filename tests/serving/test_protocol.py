import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.serving import protocol, requests
from openpi_b1k.serving.protocol import ProtocolError
from tests.serving.fakes import ROBOT, observation, stacked

DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">f4", ">i8")


def array_map(**changes):
    """An array's map as openpi-client writes it, with changes."""
    fields = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2]} | changes
    return {key.encode(): value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_are_encoded_as_openpi_client_does(dtype, shape):
    array = (np.arange(24)[: int(np.prod(shape))] % 2).reshape(shape).astype(dtype)
    by_hand = msgpack.packb(
        {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    )
    assert protocol.pack(array) == by_hand
    read = protocol.unpack(by_hand)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)
    assert not read.flags.writeable


def test_an_array_in_another_order_of_memory_is_the_same():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(protocol.unpack(protocol.pack(array)), array)


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int64(-3), np.uint8(255), np.bool_(True)])
def test_scalars_are_encoded_as_openpi_client_does(scalar):
    by_hand = msgpack.packb({b"__npgeneric__": True, b"data": scalar.item(), b"dtype": scalar.dtype.str})
    assert protocol.pack(scalar) == by_hand
    read = protocol.unpack(by_hand)
    assert read == scalar
    assert read.dtype == scalar.dtype


def test_a_message_of_everything_comes_back():
    message = {"a": None, "b": [True, -1, 2.5, "text", b"bytes"], "c": {"d": {}, "e": []}, "f": np.str_("word")}
    assert protocol.unpack(protocol.pack(message)) == message
    real = stacked(observation(1), observation(2)) | {"__action_chunk_size__": 4}
    read = protocol.unpack_map(protocol.pack(real))
    assert read.keys() == real.keys()
    for key, value in real.items():
        np.testing.assert_array_equal(read[key], value)


REFUSED = {
    "nothing": (b"", "0 bytes that are no msgpack message"),
    "an unused code": (b"\xc1", "1 bytes that are no msgpack message"),
    "cut short": (protocol.pack(observation())[:-1], "no msgpack message: Unpack failed: incomplete input"),
    "more behind it": (b"\x80\x80", "no msgpack message: unpack"),
    "no UTF-8": (b"\xa1\xff", "can't decode byte"),
    "an endless list": (b"\xdd\xff\xff\xff\xff", "4294967295 exceeds max_array_len"),
    "an endless map": (b"\xdf\xff\xff\xff\xff", "4294967295 exceeds max_map_len"),
    "an extension": (b"\xd6\xff\0\0\0\0", "exceeds max_ext_len"),
    "an empty extension": (b"\xc7\x00\x05", "cannot hold a ExtType"),
    "deep lists": (b"\x91" * 9 + b"\xc0", "inside each other 8 times"),
    "very deep lists": (b"\x91" * 100_000 + b"\xc0", "no msgpack message"),
    "many lists": (b"\x95" + (b"\xdc\x00\xff" + b"\x90" * 255) * 5, "may have 1024 maps and lists"),
    "a list as key": (b"\x81\x90\x01", "unhashable"),
    "a number as key": (b"\x81\x01\x01", "keys must be text; got 1"),
    "bytes as key": (msgpack.packb({b"reset": True}), "keys must be text; got 5 bytes"),
    "torch": (msgpack.packb({b"__torch__": True}), "keys must be text"),
    "a long text": (msgpack.packb("x" * (2**16 + 1)), "65537 exceeds max_str_len\\(65536\\)"),
    "objects": (msgpack.packb(array_map(dtype="|O")), "got dtype '|O'"),
    "void": (msgpack.packb(array_map(dtype="|V8")), "got dtype '|V8'"),
    "complex": (msgpack.packb(array_map(dtype="<c8")), "got dtype '<c8'"),
    "a record": (msgpack.packb(array_map(dtype="<f4,<f4")), "got dtype"),
    "a nested type": (msgpack.packb(array_map(dtype="(2,)<f4")), "got dtype"),
    "dates": (msgpack.packb(array_map(dtype="<M8[s]")), "got dtype"),
    "an array of text": (msgpack.packb(array_map(dtype="<U1")), "got dtype"),
    "a dtype that is none": (msgpack.packb(array_map(dtype=4)), "got dtype 4"),
    "too few bytes": (msgpack.packb(array_map(shape=[3])), r"an array <f4 \[3\] does not have 8 bytes"),
    "too many bytes": (msgpack.packb(array_map(shape=[1])), r"an array <f4 \[1\] does not have 8 bytes"),
    "a shape beyond numbers": (msgpack.packb(array_map(shape=[2**40, 2**40])), "does not have 8 bytes"),
    "a negative size": (msgpack.packb(array_map(shape=[-1, -2])), "shape must be up to 8 sizes of at least 0"),
    "a true size": (msgpack.packb(array_map(shape=[True, 2])), "shape must be"),
    "many axes": (msgpack.packb(array_map(shape=[1] * 8 + [2])), "shape must be"),
    "no shape": (msgpack.packb(array_map(shape=None)), "__ndarray__ must have it true"),
    "text as data": (msgpack.packb(array_map(data="12345678")), "data must be bytes; got str"),
    "more in the map": (msgpack.packb(array_map() | {b"x": 1}), "__ndarray__ must have it true"),
    "not true": (msgpack.packb(array_map() | {b"__ndarray__": 1}), "__ndarray__ must have it true"),
    "a scalar out of range": (
        msgpack.packb({b"__npgeneric__": True, b"data": 256, b"dtype": "|u1"}),
        "a scalar |u1 cannot be 256",
    ),
    "a scalar of another kind": (
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
        "a scalar <f4 cannot be 'x'",
    ),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_message_is_refused(data, reason):
    with pytest.raises(ProtocolError, match=reason.replace("|", r"\|")):
        protocol.unpack(data)


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(1, "V4"), np.zeros(1, complex), object(), {1, 2}])
def test_what_has_no_place_in_a_message_is_not_written(value):
    with pytest.raises(ProtocolError, match="a message cannot hold this"):
        protocol.pack({"x": value})


def test_a_message_that_is_no_map_is_refused():
    with pytest.raises(ProtocolError, match="must be a map from text to values; got list"):
        protocol.unpack_map(protocol.pack([1]))


def survives(data):
    """Reads anything: either it is a message of what messages may hold, or it is refused with a sentence.

    What is read must come back from being written, take no more memory than its bytes, and end as samples for the
    policy or be refused with a sentence.
    """
    try:
        message = protocol.unpack_map(data)
    except ProtocolError:
        return
    assert held(message, depth=0) <= len(data)
    again = protocol.unpack(protocol.pack(message))
    assert fingerprint(again) == fingerprint(message)
    request = None
    with contextlib.suppress(ProtocolError):
        request = requests.parse(message)
    for one in request.environments if request is not None else ():
        assert one.prompt is None or (type(one.prompt) is str and one.prompt.strip())
        assert one.task_id is None or type(one.task_id) is int
        with contextlib.suppress(ProtocolError, KeyError):
            sample = requests.raw_sample(one.observation, ROBOT, SourceConfig(), "Go.")
            assert one.observation[protocol.PROPRIO].dtype.kind in "iuf"
            assert (sample["proprio"].dtype, sample["proprio"].ndim) == (np.float32, 1)
            assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) for image in sample["images"].values())


def held(value, depth):
    """Returns the bytes of the arrays and texts in a message, after a look at each of its parts."""
    assert depth <= protocol.MAX_DEPTH
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return sum(held(inner, depth + 1) for inner in value.values())
    if isinstance(value, list):
        return sum(held(inner, depth + 1) for inner in value)
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, str | bytes):
        assert value.dtype.kind in "biuf"
        assert not value.flags.writeable or isinstance(value, np.generic)
        return value.nbytes if isinstance(value, np.ndarray) else 0
    assert value is None or isinstance(value, bool | int | float | str | bytes)
    return len(value) if isinstance(value, str | bytes) else 0


def fingerprint(value):
    """Returns what two messages have equal if they are the same, NaN included."""
    if isinstance(value, dict):
        return {key: fingerprint(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [fingerprint(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return type(value), repr(value)


WHOLE = protocol.pack(stacked(observation(1), observation(2)) | {"prompt": "Go.", "__action_chunk_size__": 4})
mutations = st.lists(
    st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=6
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=4), st.binary(max_size=9)
)
keys = st.one_of(
    st.sampled_from(["robot_r1::proprio", "task_id", "prompt", "reset", "observation/state", "__action_chunk_size__"]),
    st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", 1]),
)
dtypes = st.sampled_from(["<f4", "|u1", "<i8", "|O", "<c16", "|V0", "<U2", "?", "f", ""])
arrays = st.fixed_dictionaries(
    {
        b"__ndarray__": st.just(True),
        b"data": st.binary(max_size=16),
        b"dtype": dtypes,
        b"shape": st.lists(st.integers(-1, 9)),
    }
)
trees = st.recursive(
    st.one_of(leaves, arrays),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=12,
)


sizes = st.sampled_from([(), (1,), (61,), (256,), (6, 6), (6, 6, 3), (6, 6, 4), (6, 6, 5), (0, 6, 3)])
fields = st.tuples(
    st.integers(0, 3),
    st.sampled_from([*observation(), "prompt", "__action_chunk_size__", "observation/state"]),
    st.one_of(trees, st.builds(np.zeros, sizes, st.sampled_from(["<f4", ">f8", "|u1", "<i8", "|b1", "<f2"]))),
)
"""A number of environments, and one field with what it is to hold."""


def replaced(num, key, value):
    """Bytes of a real message of `num` environments, or of the one of 2025 for 0, with another value in one field."""
    whole = stacked(*[observation(i) for i in range(num)]) if num else observation()
    if num and isinstance(value, np.ndarray):
        value = np.stack([value] * num)
    return msgpack.packb(whole | {key: value}, default=lambda array: msgpack.unpackb(protocol.pack(array)))


def mutated(changes):
    """Bytes of a real message with some replaced, inserted, cut out, or cut off."""
    data = bytearray(WHOLE)
    for place, kind, piece in changes:
        end = {0: place + len(piece), 1: place, 2: place + 3, 3: len(data)}[kind]
        data[place:end] = piece
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(mutations)
def test_mutated_messages_are_read_or_refused(changes):
    survives(mutated(changes))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, trees, max_size=6))
def test_messages_of_any_content_are_read_or_refused(tree):
    survives(msgpack.packb(tree))


@settings(max_examples=300, deadline=None)
@given(fields)
def test_real_messages_with_any_field_are_read_or_refused(field):
    survives(replaced(*field))


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(
    st.one_of(
        mutations.map(mutated),
        trees.map(msgpack.packb),
        fields.map(lambda field: replaced(*field)),
        st.binary(max_size=64),
    )
)
def test_thousands_of_messages_are_read_or_refused(data):
    survives(data)
