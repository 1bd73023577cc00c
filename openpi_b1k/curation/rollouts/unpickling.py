"""Reads the pickled arrays of openpi-comet's rollouts without doing what a pickle says.

`numpy.load(allow_pickle=True)` runs any code that a file names. Here the few names that pickles of dict, list, ndarray
and NumPy's scalars hold stand for classes of this module, which only keep what they are given; anything else is
refused by its name. Not even NumPy's own rebuilding runs on a file's word, as it believes types that make it follow
addresses. Bytes become numbers by `numpy.frombuffer`, after their type and size were checked.
"""

import io
import math
import pathlib
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

MEMBER = "arr_0.npy"
"""What `numpy.savez(path, value)` calls its value."""
MOST_BYTES = 2**30
"""Of the pickle: 45,761 steps, the longest demonstration, take 0.1 GB."""
MOST_VECTORS, MOST_ENTRIES = 200_000, 1024
"""Of a list, and of a vector in it: a pickle can mean far more than its size by naming one list many times."""
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
"""Types of numbers that are read, as NumPy abbreviates them."""
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
"""Operations that make room for an object of a number the file chooses."""
FAILURES = (
    pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, OverflowError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What unpickling raises when it is given bytes that are no pickle."""


class Kind:
    """Stands for numpy.dtype: a type of numbers, or of objects, and nothing else that a dtype could be."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        """Takes what NumPy pickles of a dtype, such as f4."""
        del align, copy
        if code not in (*NUMBERS, "O8"):
            raise pickle.UnpicklingError(f"arrays of type {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        """Keeps the order of bytes; fields, shapes and flags are refused or left out."""
        _, order, subarray, names, fields = state[:5]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("arrays of compound type")
        self.order = order

    @property
    def dtype(self) -> np.dtype:
        """The type of numbers it stands for."""
        return np.dtype(self.order.replace("|", "<") + self.code)


class Array:
    """Stands for numpy.ndarray and for the function that makes an empty one before its state is set."""

    def __init__(self, *made_as: object):
        """Takes what NumPy calls that function with, and makes nothing."""
        del made_as
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        """Takes shape, type, order of axes and content."""
        _, shape, kind, is_fortran, content = state
        size = math.prod(shape)
        if kind.code == "O8":
            if not isinstance(content, list) or len(content) != size:
                raise pickle.UnpicklingError("an array of objects without its objects")
            self.value = content[0] if shape == () else content
            return
        numbers = np.frombuffer(content, kind.dtype)
        if len(numbers) != size:
            raise pickle.UnpicklingError(f"{len(numbers)} numbers in an array of shape {shape}")
        self.value = numbers.reshape(shape, order="F" if is_fortran else "C")


class Scalar:
    """Stands for the function that makes one of NumPy's scalars."""

    def __init__(self, kind: Kind, content: bytes):
        """Takes its type and bytes."""
        (self.value,) = np.frombuffer(content, kind.dtype)

    def __setstate__(self, state: object) -> None:
        """Refuses a state: scalars have none."""
        raise pickle.UnpicklingError("a scalar with a state")


ADMITTED: dict[str, type] = {
    "numpy.dtype": Kind,
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.core.multiarray.scalar": Scalar,
    "numpy._core.multiarray.scalar": Scalar,
}


class Unpickler(pickle.Unpickler):
    """Knows the names in ADMITTED only."""

    def find_class(self, module_name: str, global_name: str, /) -> type:
        """Returns what stands for a name.

        Raises:
            pickle.UnpicklingError: it is not admitted.
        """
        name = f"{module_name}.{global_name}"
        if name not in ADMITTED:
            raise pickle.UnpicklingError(f"the name {name!r}")
        return ADMITTED[name]


def read_vectors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the vectors in a file that `numpy.savez(path, {name: list of vectors})` wrote, each float32 [n, d].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or holds anything but dict, list, ndarray and numbers.
    """
    value = plain(unpickle(path, read_member(path)))
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{path} must hold a dict of named lists of vectors; got {type(value).__name__}")
    return {name: stack(path, name, vectors) for name, vectors in value.items()}


def read_member(path: pathlib.Path) -> bytes:
    """Returns the pickle in an npz file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no npz, or does not hold one array of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size > MOST_BYTES:
                raise ValueError(f"{path} holds {size} bytes, more than any rollout: at most {MOST_BYTES} are read")
            member = io.BytesIO(archive.read(MEMBER))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole npz file: {error}; copy it again") from error
    except KeyError as error:
        raise ValueError(f"{path} does not hold {MEMBER}, as openpi-comet's state_action.npz does") from error
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f"{MEMBER} in {path} has another npy version than 1.0, which openpi-comet's files have")
    _, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype != np.dtype(object):
        raise ValueError(f"{MEMBER} in {path} must be a pickled dict; it is an array of type {dtype}")
    return member.read()


def unpickle(path: pathlib.Path, content: bytes) -> Any:
    """Returns the stand-ins that a pickle makes; `path` is for messages.

    Raises:
        ValueError: it is no pickle, or names what is not admitted.
    """
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in MEMO and int(argument or 0) > len(content):
                raise pickle.UnpicklingError(f"room for {argument} objects")
        return Unpickler(io.BytesIO(content)).load()
    except FAILURES as error:
        raise ValueError(
            f"{path} is refused: {error}; its pickle may hold dict, list, ndarray and numbers, nothing else"
        ) from error


def plain(value: Any) -> Any:
    """Returns the array or number that a stand-in stands for; anything else as it is."""
    return value.value if isinstance(value, Array | Scalar) else value


def stack(path: pathlib.Path, name: str, vectors: Any) -> np.ndarray:
    """Returns vectors as float32 [n, d]; `path` and `name` are for messages.

    Raises:
        ValueError: they are not vectors of numbers of one size.
    """
    try:
        return np.stack([vector(row) for row in members(plain(vectors), MOST_VECTORS)])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} in {path} must be a list of vectors of one size: {error}") from error


def vector(row: Any) -> np.ndarray:
    """Returns one vector as float32 [d], of an array of numbers or a list of them."""
    row = plain(row)
    if isinstance(row, np.ndarray):
        return row.reshape(-1).astype(np.float32)
    return np.array([float(plain(number)) for number in members(row, MOST_ENTRIES)], np.float32)


def members(value: Any, most: int) -> Iterable[Any]:
    """Returns a list or array, if it is one and not too long."""
    if not isinstance(value, list | np.ndarray) or not 0 < len(value) <= most:
        raise TypeError(f"expected a list of 1 to {most} entries; got {type(value).__name__}")
    return value
