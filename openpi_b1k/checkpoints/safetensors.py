"""Safetensors files: read without copying them into memory, written one tensor at a time.

The package of that name writes a file from tensors that are all in memory at once, which a full-size model and a small
machine do not allow; without torch, it does not know bfloat16. The format is simple enough: eight bytes with the length
of a JSON header, the header ({key: {dtype, shape, data_offsets}} and text under `__metadata__`), then the bytes of all
tensors, little endian, without gaps. Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"
MAX_HEADER = 100_000_000
"""Bytes; the package refuses longer ones, too."""
LENGTH_BYTES = 8
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Entry = tuple[np.dtype, tuple[int, ...]]


class File:
    """The tensors of one file, or of several that an index lists."""

    def __init__(self, path: pathlib.Path, parts: Mapping[str, "_Part"], metadata: dict[str, str]):
        self.path = path
        self.metadata = metadata
        """Texts by name."""
        self._parts = parts
        self.tensors: dict[str, Entry] = {key: part.entries[key] for key, part in parts.items()}
        """Key -> type and shape."""

    def read(self, key: str) -> np.ndarray:
        """Returns a tensor as a view of the mapped file. Writing to it changes no file.

        Raises:
            KeyError: there is none under this key.
        """
        if key not in self._parts:
            raise KeyError(f"{self.path} has no tensor {key!r}")
        return self._parts[key].read(key)


class _Part:
    """One file, mapped."""

    def __init__(self, path: pathlib.Path):
        header, start = _read_header(path)
        self.metadata: dict[str, str] = header.pop(METADATA, {})
        size = path.stat().st_size - start
        self.entries: dict[str, Entry] = {}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for key, value in sorted(header.items(), key=lambda item: _offsets(path, *item)):
            first, last = _offsets(path, key, value)
            if first != end:
                raise ValueError(f"{path} is damaged: {key} begins at byte {first} of the data, expected {end}")
            self.entries[key] = _entry(path, key, value, last - first)
            self._places[key], end = (first, last), last
        if end != size:
            problem = "is cut off" if end > size else "has bytes that belong to no tensor"
            raise ValueError(
                f"{path} {problem}: its header tells of {end} bytes of data, there are {size}; get it anew"
            )
        # Copy on write: nothing that is done to an array reaches the file, and torch takes writable arrays as they are.
        self._bytes = np.memmap(path, np.uint8, "c", offset=start) if size else np.empty(0, np.uint8)

    def read(self, key: str) -> np.ndarray:
        dtype, shape = self.entries[key]
        first, last = self._places[key]
        return np.asarray(self._bytes[first:last]).view(dtype).reshape(shape)


def open_file(path: pathlib.Path | str) -> File:
    """Returns the tensors of a file, or of a directory with `model.safetensors` or with an index of several files.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not of this format, is cut off, or has a type that is not supported.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / (FILE if (path / FILE).is_file() or not (path / INDEX).is_file() else INDEX)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give a safetensors file, or a directory with {FILE} or {INDEX}")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    part = _Part(path)
    return File(path, dict.fromkeys(part.entries, part), part.metadata)


def _open_index(path: pathlib.Path) -> File:
    try:
        places = json.loads(path.read_text())["weight_map"]
        names = {key: pathlib.PurePath(name).name for key, name in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors files: {error!r}") from error
    parts = {name: _Part(path.parent / name) for name in sorted(set(names.values())) if _require(path, name)}
    for name, part in parts.items():
        differing = {key for key in names if names[key] == name} ^ part.entries.keys()
        if differing:
            raise ValueError(f"{path} and {name} differ about which tensors it holds: {sorted(differing)[:4]}")
    return File(path, {key: parts[name] for key, name in names.items()}, {})


def _require(index: pathlib.Path, name: str) -> bool:
    if not (index.parent / name).is_file():
        raise FileNotFoundError(f"no {index.parent / name}, which {index} lists; get the rest of the model")
    return True


class Writer:
    """Writes a file whose tensors come one by one, in any order; a context manager.

    The file has its full size from the start. If not all tensors are written, leaving the context is an error, and the
    file is no model.
    """

    def __init__(self, path: pathlib.Path | str, tensors: Mapping[str, Entry], metadata: Mapping[str, str]):
        """Writes the header.

        Args:
            path: where to; replaced if it exists.
            tensors: key -> type and shape of all that will come, in the order they lie in the file.
            metadata: texts by name.

        Raises:
            ValueError: a type is not supported.
            OSError: there is no room, or the place cannot be written to.
        """
        self.path = pathlib.Path(path)
        self._tensors = {key: (np.dtype(dtype), tuple(shape)) for key, (dtype, shape) in tensors.items()}
        header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}  # Any: as JSON has it
        self._places: dict[str, int] = {}
        end = 0
        for key, (dtype, shape) in self._tensors.items():
            if dtype not in NAMES:
                raise ValueError(
                    f"{key} is {dtype}, which safetensors files are not written with; {', '.join(NAMES.values())} are"
                )
            size = dtype.itemsize * math.prod(shape)
            header[key] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
            self._places[key], end = end, end + size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)
        self._start = LENGTH_BYTES + len(text)
        self._missing = set(self._tensors)
        self._file = self.path.open("wb")
        self._file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        self._file.truncate(self._start + end)

    def write(self, key: str, array: np.ndarray) -> None:
        """Writes one tensor to its place.

        Raises:
            KeyError: none was announced under this key, or it has been written.
            ValueError: it is of another type or shape.
            OSError: there is no room.
        """
        if key not in self._missing:
            raise KeyError(f"{key!r} has been written" if key in self._tensors else f"{key!r} was not announced")
        dtype, shape = self._tensors[key]
        if (array.dtype, array.shape) != (dtype, shape):
            raise ValueError(f"{key} was announced as {dtype} {shape}; got {array.dtype} {array.shape}")
        self._file.seek(self._start + self._places[key])
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._missing.discard(key)

    def __enter__(self) -> "Writer":
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file.

        Raises:
            ValueError: tensors are missing.
        """
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self.path} lacks {len(self._missing)} of its tensors: {sorted(self._missing)[:4]}")


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:  # Any: as JSON has it
    """Returns the header, and at which byte the data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER:
            raise ValueError(f"{path} is no safetensors file: its header would be {length} bytes long")
        text = file.read(length)
    if len(text) < length or not length:
        raise ValueError(f"{path} is no safetensors file, or cut off within its header; get it anew")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is a {type(header).__name__}")
    return header, LENGTH_BYTES + length


def _offsets(path: pathlib.Path, key: str, value: Any) -> tuple[int, int]:  # Any: as JSON has it
    try:
        first, last = value["data_offsets"]
        return int(first), int(last)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: where {key} lies is {value!r}") from error


def _entry(path: pathlib.Path, key: str, value: dict[str, Any], size: int) -> Entry:  # Any: as JSON has it
    if value.get("dtype") not in DTYPES:
        raise ValueError(f"{path} holds {key} as {value.get('dtype')}; {', '.join(DTYPES)} can be read")
    dtype, shape = DTYPES[value["dtype"]], tuple(value.get("shape", ()))
    if (
        not all(isinstance(length, int) and length >= 0 for length in shape)
        or dtype.itemsize * math.prod(shape) != size
    ):
        raise ValueError(f"{path} is damaged: {key} is {dtype} {shape} in {size} bytes")
    return dtype, shape
