"""Messages of the evaluator and of openpi's clients as bytes: msgpack, arrays in maps of their own. Imports no more.

An array is `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [...]}` and a NumPy scalar
`{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}`; the keys of these maps are bytes, all others are text.
Source: openpi-client `msgpack_numpy.py`, OmniGibson `learning/utils/network_utils.py` (2025) and `eval/utils` (2026).

Reading is strict, as a server may be sent anything: nothing is unpickled, an array's bytes must be as many as its shape
says, and the number of parts, their nesting and their sizes are limited, so that a message of n bytes never takes more
than some times n bytes of memory.
"""

import math
import re
import reprlib
from typing import Any

import msgpack
import numpy as np

ACTION = "action"
"""Of a reply: float32 [23] or [environments, 23]."""
ACTION_CHUNK = "action_chunk"
"""Of a reply: the actions to replay, float32 [..., K, 23], the first of which is `action`."""
ACTIONS = "actions"
"""Of a reply to openpi's clients: a whole chunk, float32 [action horizon, 23]."""
CHUNK_SIZE = "__action_chunk_size__"
"""Of a request: how many actions the client would replay."""
RESET = "reset"
"""Of a message that starts an episode and gets no reply."""
SERVER_TIMING = "server_timing"
"""Of a reply: {what: milliseconds}."""
PROPRIO = "robot_r1::proprio"
TASK_ID = "task_id"
PROMPT = "prompt"

MAX_PARTS = 1024
"""Maps and lists in one message; an evaluator's for 16 environments has some 20."""
MAX_LENGTH = 256
"""Entries of one map or list."""
MAX_TEXT = 64 * 1024
"""Bytes of one text; longer ones are not even decoded."""
MAX_DEPTH = 8
"""Maps and lists inside each other."""
MAX_AXES = 8
MAX_SHOWN = 1000
"""Characters of an error that are told and logged; it may quote what a client sent."""

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_ARRAY_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_TEXT_DTYPE = re.compile(r"[<>|=]?[US]\d{1,6}")


class ProtocolError(ValueError):
    """A message that is none; the text says why."""


def pack(message: Any) -> bytes:  # Any: nested dicts and lists of arrays, numbers and texts
    """Returns a message as bytes.

    Raises:
        ProtocolError: it holds something that has no place in a message, such as an array of objects.
    """
    try:
        return msgpack.packb(message, default=_encoded) or b""  # never empty: None is in its annotation alone
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"a message cannot hold this: {error}") from error


def unpack(data: bytes) -> Any:
    """Returns the message that `data` holds. Its arrays cannot be written to.

    Raises:
        ProtocolError: the bytes are no message, or one beyond the limits above.
    """
    count = 0

    def counted(part: Any) -> Any:
        nonlocal count
        count += 1
        if count > MAX_PARTS:
            raise ProtocolError(f"a message may have {MAX_PARTS} maps and lists; this one has more")
        return part

    try:
        message = msgpack.unpackb(
            data,
            strict_map_key=False,
            object_hook=lambda part: counted(_decoded(part)),
            list_hook=counted,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"{len(data)} bytes that are no msgpack message: {reason}") from error
    _check(message, 0)
    return message


def unpack_map(data: bytes) -> dict[str, Any]:
    """Returns the message that `data` holds, which must be a map.

    Raises:
        ProtocolError: it is not, or `unpack` refuses it.
    """
    message = unpack(data)
    if not isinstance(message, dict):
        raise ProtocolError(f"a message must be a map from text to values; got {type(message).__name__}")
    return message


def shown(value: Any) -> str:
    """Returns a value as a short text, for what is said of a message."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else reprlib.repr(value)


def printable(text: str) -> str:
    """Returns the beginning of a text, in which nothing forges a line of a log or moves a terminal's cursor."""
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return "".join(character if character.isprintable() else "?" for character in short)


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_dtype(value.dtype.str, _ARRAY_DTYPE)
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        _check_dtype(value.dtype.str, _ARRAY_DTYPE, _TEXT_DTYPE)
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"a {type(value).__name__}")


def _decoded(part: dict) -> Any:
    """Returns the array or scalar that a map stands for, or the map."""
    if _ARRAY in part:
        return _array(part)
    if _SCALAR in part:
        return _scalar(part)
    return part


def _array(part: dict) -> np.ndarray:
    _check_keys(part, _ARRAY, _DATA, _DTYPE, _SHAPE)
    data, shape = part[_DATA], part[_SHAPE]
    dtype = _check_dtype(part[_DTYPE], _ARRAY_DTYPE)
    if not isinstance(data, bytes):
        raise ProtocolError(f"an array's data must be bytes; got {type(data).__name__}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError(f"an array's shape must be up to {MAX_AXES} sizes of at least 0; got {shown(shape)}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array {dtype.str} {shape} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(part: dict) -> np.generic:
    _check_keys(part, _SCALAR, _DATA, _DTYPE)
    dtype, value = _check_dtype(part[_DTYPE], _ARRAY_DTYPE, _TEXT_DTYPE), part[_DATA]
    kinds = {"b": bool, "i": int, "u": int, "f": (float, int), "U": str, "S": bytes}[dtype.kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and dtype.kind != "b"):
        raise ProtocolError(f"a scalar {dtype.str} cannot be {shown(value)}")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(value)
    except OverflowError as error:
        raise ProtocolError(f"a scalar {dtype.str} cannot be {shown(value)}") from error


def _check_keys(part: dict, marker: bytes, *others: bytes) -> None:
    if part.keys() != {marker, *others} or part[marker] is not True:
        wanted = ", ".join(key.decode() for key in others)
        raise ProtocolError(f"a map with {marker.decode()} must have it true, and {wanted}, all keys as bytes")


def _check_dtype(name: Any, *allowed: re.Pattern) -> np.dtype:
    if not isinstance(name, str) or not any(pattern.fullmatch(name) for pattern in allowed):
        raise ProtocolError(f"an array must hold booleans, integers or floats, such as '<f4'; got dtype {shown(name)}")
    return np.dtype(name)


def _check(value: Any, depth: int) -> None:
    """Refuses what a decoded message may not hold: other types, keys that are no text, too much nesting."""
    if depth > MAX_DEPTH:
        raise ProtocolError(f"maps and lists may be inside each other {MAX_DEPTH} times; these are more often")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ProtocolError(f"a map's keys must be text; got {shown(key)}")
            _check(key, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
    elif not isinstance(value, None | bool | int | float | str | bytes | np.ndarray | np.generic):
        raise ProtocolError(f"a message cannot hold a {type(value).__name__}")
