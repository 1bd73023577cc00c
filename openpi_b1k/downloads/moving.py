"""Downloads in one tar file, for machines that reach no server.

Each download is its record, then its files, under the names they have in a cache.
"""

import io
import pathlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator

import tqdm

from openpi_b1k.downloads.http import progress
from openpi_b1k.downloads.record import SCHEMES, SUFFIX, Entry, Record, problems, record_file

BLOCK = 1 << 20


def export(entries: Iterable[Entry], cache: pathlib.Path, target: pathlib.Path) -> None:
    """Writes downloads into a tar file, which appears when it is whole.

    Raises:
        FileExistsError: `target` exists.
        ValueError: a download has no record, or is not what its record says.
    """
    entries = list(entries)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another name, or delete it first")
    for entry in entries:
        if entry.record is None:
            raise ValueError(f"{entry.path} has no record of what arrived; delete it and download it again")
        found = next(problems(entry.path, entry.record), None)
        if found:
            raise ValueError(f"{found}; delete {entry.path} and download it again")
    partial = target.parent / f"{target.name}.partial"
    total = sum(entry.record.num_bytes for entry in entries if entry.record)
    try:
        with progress(target.name, total) as bar, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                _add(tar, entry, cache, bar)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, entry: Entry, cache: pathlib.Path, bar: tqdm.tqdm) -> None:
    place = entry.path.relative_to(cache).as_posix()
    record = entry.record
    if record is None:
        raise ValueError(f"{entry.path} has no record")
    text = record.to_json().encode()
    header = tarfile.TarInfo(f"{place}{SUFFIX}")
    header.size = len(text)
    tar.addfile(header, io.BytesIO(text))
    for name, file in record.files.items():
        tar.add(entry.path / name if name else entry.path, f"{place}/{name}" if name else place, recursive=False)
        bar.update(file.size)


def import_tar(source: pathlib.Path, cache: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (address, what became of it) for each download in a tar file that `export` wrote.

    A download is checked before it gets its place. One that is there already is left as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of `export`, is cut off, or a download is not what its record says; those before it are
            in their places.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no {source}; make one with --export on a machine that has a network")
    try:
        with tarfile.open(source) as tar:
            members = iter(tar)
            for member in members:
                yield _import_entry(tar, member, members, cache)
    except tarfile.TarError as error:
        raise ValueError(f"{source} is no tar file, or is cut off: {error}; copy it again") from error


def _import_entry(
    tar: tarfile.TarFile, member: tarfile.TarInfo, members: Iterator[tarfile.TarInfo], cache: pathlib.Path
) -> tuple[str, str]:
    """Takes one download out of the tar file, `member` being its record."""
    scheme, _, name = member.name.partition("/")
    name = name.removesuffix(SUFFIX)
    if scheme not in SCHEMES or not member.name.endswith(SUFFIX) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"{tar.name} was not written by --export: it holds {member.name!r} where a record belongs")
    record = Record.from_json(_content(tar, member))
    place = cache / scheme / name
    is_there = place.exists()
    arriving = cache / scheme / f"{name}.importing.partial"
    shutil.rmtree(arriving, ignore_errors=True)
    try:
        for path in record.files:
            found = next(members, None)
            expected = f"{scheme}/{name}/{path}" if path else f"{scheme}/{name}"
            if found is None or found.name != expected or not found.isfile() or not _is_below(path):
                raise ValueError(f"{tar.name} is damaged or cut off: expected {expected}, found {found and found.name}")
            if not is_there:
                _extract(tar, found, arriving / "content" / path if path else arriving / "content")
        if is_there:
            return record.address, f"kept what is at {place}"
        problem = next(problems(arriving / "content", record), None)
        if problem:
            raise ValueError(f"{tar.name} is damaged: {problem}; copy it again")
        record_file(place).write_text(record.to_json())
        (arriving / "content").rename(place)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return record.address, f"now at {place}"


def _is_below(path: str) -> bool:
    parts = pathlib.PurePosixPath(path).parts
    return ".." not in parts and not pathlib.PurePosixPath(path).is_absolute()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{tar.name} was not written by --export: {member.name!r} is no file")
    return file.read()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: pathlib.Path) -> None:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{tar.name} was not written by --export: {member.name!r} is no file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as output:
        shutil.copyfileobj(file, output, BLOCK)
