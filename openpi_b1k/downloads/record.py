"""What the cache holds: beside each download a record of its files, by which it can be checked and moved."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping

SUFFIX = ".record.json"
SCHEMES = ("gs", "hf", "http", "https", "s3")
"""Folders of the cache that hold downloads."""
BESIDE = (SUFFIX, ".lock", ".partial", ".parts", ".hf")
"""How the names end that lie beside downloads; no download's own name does."""


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file as it arrived."""

    size: int
    sha256: str
    """Hexadecimal digits."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A download: one file, under the empty path, or those of a directory."""

    address: str
    files: dict[str, FileRecord]

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files.values())

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record":
        """Returns the record that `to_json` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            stored = json.loads(text)
            files = {
                str(path): FileRecord(int(file["size"]), str(file["sha256"])) for path, file in stored["files"].items()
            }
            return cls(str(stored["address"]), files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of a download: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """A download in the cache."""

    path: pathlib.Path
    record: Record | None
    """None: it was put there by hand, or by a version that kept no records."""

    @property
    def address(self) -> str:
        """What was downloaded, or the path if that is not known."""
        return self.record.address if self.record else str(self.path)

    def __str__(self) -> str:
        """Returns a line for it."""
        if self.record is None:
            return f"{self.path}: put there by hand, or by a version that kept no checksums"
        return f"{self.address}: {self.record.num_bytes / 1e9:.2f} GB in {len(self.record.files)} files at {self.path}"


def record_file(path: pathlib.Path) -> pathlib.Path:
    """Returns where the record of the download at `path` lies."""
    return path.parent / f"{path.name}{SUFFIX}"


def lock_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the lock file of those who fill `path`."""
    return path.parent / f"{path.name}.lock"


def make(address: str, path: pathlib.Path) -> Record:
    """Returns the record of what lies at `path`; reads all of it."""
    found = {"": path} if path.is_file() else {str(file.relative_to(path)): file for file in _files(path)}
    return Record(
        address, {name: FileRecord(file.stat().st_size, sha256(file)) for name, file in sorted(found.items())}
    )


def sha256(path: pathlib.Path) -> str:
    """Returns the hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(cache: pathlib.Path) -> list[Entry]:
    """Returns the downloads in a cache that have arrived, by path; generated data are none.

    Raises:
        ValueError: a record cannot be read.
    """
    return [
        Entry(path, read(path))
        for scheme in SCHEMES
        for path in sorted((cache / scheme).glob("*"))
        if not path.name.endswith(BESIDE)
    ]


def read(path: pathlib.Path) -> Record | None:
    """Returns the record of the download at `path`, None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    file = record_file(path)
    if not file.is_file():
        return None
    try:
        return Record.from_json(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def problems(path: pathlib.Path, record: Record) -> Iterator[str]:
    """Yields a sentence for each way in which what lies at `path` differs from its record; reads all of it."""
    for name, expected in record.files.items():
        file = path / name if name else path
        if not file.is_file():
            yield f"{file} is missing"
        elif file.stat().st_size != expected.size:
            yield f"{file} has {file.stat().st_size} bytes, not {expected.size}"
        elif sha256(file) != expected.sha256:
            yield f"{file} is damaged: its SHA-256 is not that of what arrived"
    if path.is_dir():
        yield from (
            f"{file} does not belong to it" for file in _files(path) if str(file.relative_to(path)) not in record.files
        )


@dataclasses.dataclass(frozen=True)
class State:
    """What a look at a download found."""

    entry: Entry
    problems: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether all is as it arrived, or nothing is known of how it arrived."""
        return not self.problems

    def __str__(self) -> str:
        """Returns a line for it, and one for each problem."""
        entry = self.entry
        if entry.record is None:
            return f"not checked: {entry.path} was put there by hand, or by a version that kept no checksums"
        size = f"{entry.record.num_bytes / 1e9:.2f} GB in {len(entry.record.files)} files"
        if self.is_good:
            return f"good: {entry.record.address}, {size}"
        return "\n  ".join(
            [f"damaged: {entry.record.address}, {size}; delete {entry.path} and fetch it again", *self.problems]
        )


def state(entry: Entry) -> State:
    """Returns what is wrong with a download; reads all of it."""
    return State(entry, () if entry.record is None else tuple(problems(entry.path, entry.record)))


def differing(record: Record, checksums: Mapping[str, str]) -> list[str]:
    """Returns the files whose SHA-256 is not the one that a server told."""
    return [name for name, expected in checksums.items() if record.files[name].sha256 != expected]


def _files(path: pathlib.Path) -> Iterator[pathlib.Path]:
    return (file for file in sorted(path.rglob("*")) if file.is_file())
